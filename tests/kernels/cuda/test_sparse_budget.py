"""How many instructions the sparse kernels spend on a non-zero, read from their machine code."""

from pathlib import Path

import pytest

from benchmarks.cuda_bounds import read_costs
from benchmarks.cuda_resources.resources import find_tool
from tsugiki_kernels.cuda.binaries import Binaries


@pytest.fixture(scope="module")
def costs(request: pytest.FixtureRequest) -> dict[str, float]:
    launcher = pytest.importorskip(
        "tsugiki_kernels.cuda.cupy_launcher", reason="no CuPy: pip install 'tsugiki[cuda]'"
    )
    if find_tool("nvdisasm") is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm; no instruction was counted")
    cache = Path(request.config.cache.mkdir("tsugiki_cubins"))
    return read_costs("sm_80", Binaries(cache, launcher.Nvrtc))


def test_tile_shared_masks_cost_two_instructions_a_nonzero(costs: dict[str, float]) -> None:
    assert costs["tiles"] <= 2


def test_masks_of_rows_cost_nine_instructions_a_nonzero(costs: dict[str, float]) -> None:
    assert costs["rows of 1"] <= 9
