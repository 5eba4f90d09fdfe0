"""How many instructions the sparse kernels spend on a non-zero, read from their machine code."""

from pathlib import Path

import pytest

from benchmarks.cuda_resources.resources import find_tool, listings
from benchmarks.cuda_resources.sass import Listing, count
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.sources import SOURCES

LANES = 32
# Panels that a turn of the tile kernel takes, and how many such loops there are on whole tiles: of
# 1 bit with and without a shift; of 2 bits, and of 4 bits twice
LOOPS = {8: 2, 4: 2}
PANEL_NONZEROS = STEP_NONZEROS = 512  # of a warp: of a panel of tiles, of a step of rows


@pytest.fixture(scope="module")
def binaries(cubin_cache: Path) -> Binaries:
    launcher = pytest.importorskip(
        "tsugiki_kernels.cuda.cupy_launcher", reason="no CuPy: pip install 'tsugiki[cuda]'"
    )
    if find_tool("nvdisasm") is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm; no instruction was counted")
    return Binaries(cubin_cache, launcher.Nvrtc)


def listing(binaries: Binaries, source: str, dtype: str, architecture: str = "sm_80") -> Listing:
    cubin = binaries.compiled(SOURCES / f"{source}.cu", architecture)
    (found,) = (k for k in listings(cubin) if k.name == f"tsugiki_{source}_{dtype}")
    return found


@pytest.mark.parametrize("architecture", ["sm_80", "sm_120"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_tile_shared_masks_cost_two_instructions_a_nonzero(
    binaries: Binaries, dtype: str, architecture: str
) -> None:
    loops = listing(binaries, "sparse_tiles", dtype, architecture).loops()
    for panels, number in LOOPS.items():
        turns = sorted(len(loop) for loop in loops if count(loop, "LDSM") == panels)
        longest = turns[:number][-1]  # the longer loops are of tails
        assert longest * LANES / (panels * PANEL_NONZEROS) <= 2


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_masks_of_rows_cost_nine_instructions_a_nonzero(binaries: Binaries, dtype: str) -> None:
    loops = listing(binaries, "sparse_rows", dtype).loops()
    steps = [loop for loop in loops if count(loop, "LDS") >= 16]
    one_token = min(count(loop, "FFMA") for loop in steps)
    longest = max(len(loop) for loop in steps if count(loop, "FFMA") == one_token)
    assert longest * LANES / STEP_NONZEROS <= 9
