"""Every kernel compiles for every GPU, spills nothing and keeps its limits."""

from pathlib import Path

import pytest

from benchmarks.cuda_resources.limits import Limits, load_limits, violations
from benchmarks.cuda_resources.occupancy import occupancy, resident_blocks
from benchmarks.cuda_resources.resources import (
    Resources,
    compile_all,
    find_tool,
    read_all,
)
from benchmarks.cuda_resources.sass import count, parse
from tsugiki_kernels.cuda.requirements import ARCHITECTURES
from tsugiki_kernels.cuda.sources import sources

TOOLS = ("cuobjdump", "nvdisasm")
LISTING = """
	.section	.text.one,"ax",@progbits
.text.one:
        /*0000*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R4, R6, R4 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   LDG.E R4, [R2.64] ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""


@pytest.fixture(scope="session")
def cubins(cubin_cache: Path) -> dict[tuple[str, str], Path]:
    """The cubin of every source and architecture, kept between runs."""
    launcher = pytest.importorskip(
        "tsugiki_kernels.cuda.cupy_launcher", reason="no CuPy: pip install 'tsugiki[cuda]'"
    )
    return compile_all(launcher.Nvrtc(), cubin_cache)


@pytest.fixture(scope="session")
def resources(cubins: dict[tuple[str, str], Path]) -> list[Resources]:
    """What every kernel takes on every architecture."""
    for tool in TOOLS:
        if find_tool(tool) is None:
            pytest.skip(f"no {tool}: pip install nvidia-cuda-{tool}; no limit was checked")
    return read_all(cubins)


def test_every_source_compiles_for_every_gpu(cubins: dict[tuple[str, str], Path]) -> None:
    assert set(cubins) == {(s.name, name) for s in sources() for name in ARCHITECTURES}
    assert all(path.stat().st_size > 0 for path in cubins.values())


def test_every_kernel_keeps_its_limits_and_spills_nothing(resources: list[Resources]) -> None:
    assert violations(resources, load_limits()) == []


def test_a_kernel_exists_on_every_architecture(resources: list[Resources]) -> None:
    kernels = {one.kernel for one in resources}
    assert {(one.kernel, one.architecture) for one in resources} == {
        (kernel, architecture) for kernel in kernels for architecture in ARCHITECTURES
    }


def test_innermost_loops_are_found_and_wide_loads_counted() -> None:
    (listing,) = parse(LISTING)
    assert [i.opcode for i in listing.loop_with_most("HMMA")] == ["HMMA.16816.F32.BF16", "BRA"]
    assert len(listing.loops()) == 1
    assert count(listing.instructions, "LDG", "LDGSTS", modifier="128") == 2
    assert count(listing.instructions, "LDG") == 2
    with pytest.raises(ValueError, match="no loop with FFMA"):
        listing.loop_with_most("FFMA")


@pytest.mark.parametrize(
    ("architecture", "registers", "percent"),
    [("sm_75", 57, 50), ("sm_80", 54, 56), ("sm_86", 64, 42), ("sm_90", 34, 75)],
)
def test_occupancy_agrees_with_nvidias_calculator(
    architecture: str, registers: int, percent: int
) -> None:
    assert round(100 * occupancy(architecture, registers, 16384, 128)) == percent


def test_a_block_that_does_not_fit_is_not_resident() -> None:
    assert resident_blocks("sm_75", 32, 65 << 10, 128) == 0


def test_limits_name_what_exceeds_them_and_what_has_none() -> None:
    one = Resources(
        kernel="tsugiki_a_bf16",
        architecture="sm_80",
        registers=80,
        spill_bytes=8,
        spill_instructions=2,
        static_shared_bytes=0,
        threads=128,
        instructions=10,
        wide_loads=0,
        wide_stores=0,
        mma=0,
    )
    limits = [Limits("tsugiki_a_*", 64, 0, 0.25, wide_loads=1, mma=1)]
    assert violations([one], limits) == [
        "tsugiki_a_bf16 on sm_80: 8 spilled bytes, at most 0 are allowed",
        "tsugiki_a_bf16 on sm_80: 2 instructions that spill, at most 0 are allowed",
        "tsugiki_a_bf16 on sm_80: 80 registers, at most 64 are allowed",
        "tsugiki_a_bf16 on sm_80: 0 16-byte loads, at least 1 are wanted",
        "tsugiki_a_bf16 on sm_80: 0 tensor-core instructions, at least 1 are wanted",
    ]
    assert violations([one], []) == ["tsugiki_a_bf16: no limits in limits.json"]
