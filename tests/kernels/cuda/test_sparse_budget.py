"""How many instructions the sparse kernels spend on a non-zero, read from their machine code."""

from pathlib import Path

import pytest

from benchmarks.cuda_bounds import PANEL_NONZEROS, read_costs
from benchmarks.cuda_resources.resources import find_tool, listings
from benchmarks.cuda_resources.sass import count
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.sources import source_of

PANELS = (8, 4, 2)  # that a turn of the tile kernel takes of 1, 2 and 4 bits


@pytest.fixture(scope="module")
def binaries(request: pytest.FixtureRequest) -> Binaries:
    launcher = pytest.importorskip(
        "tsugiki_kernels.cuda.cupy_launcher", reason="no CuPy: pip install 'tsugiki[cuda]'"
    )
    if find_tool("nvdisasm") is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm; no instruction was counted")
    cache = Path(request.config.cache.mkdir("tsugiki_cubins"))
    return Binaries(cache, launcher.Nvrtc)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_tile_shared_masks_cost_two_instructions_a_nonzero(binaries: Binaries, dtype: str) -> None:
    kernel = f"tsugiki_sparse_tiles_{dtype}"
    (listing,) = (
        k for k in listings(binaries.compiled(source_of(kernel), "sm_80")) if k.name == kernel
    )
    for panels in PANELS:
        turns = [len(loop) for loop in listing.loops() if count(loop, "LDSM") == panels]
        assert min(turns) * 32 / (panels * PANEL_NONZEROS) <= 2  # the longer loops are of tails


def test_masks_of_rows_cost_nine_instructions_a_nonzero(binaries: Binaries) -> None:
    assert read_costs("sm_80", binaries)["rows of 1"] <= 9
