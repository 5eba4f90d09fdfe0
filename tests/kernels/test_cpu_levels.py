"""Libraries for lesser processors than this one give the same answers."""

from pathlib import Path

import pytest
import torch

from tests.kernels.ahead import LESSER
from tests.kernels.attention_cases import PagedCase
from tests.kernels.deltas import KINDS, bias64, cast, close, dense64, expected64, random_bias
from tests.kernels.lattices import lattice
from tests.kernels.weights import packed_for, unpacked
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.cpu.build import LEVELS, supported_levels
from tsugiki_kernels.deltas import DenseDelta, Placed
from tsugiki_kernels.operands import ColumnDraw
from tsugiki_kernels.reference import ReferenceBackend

pytestmark = pytest.mark.compiler
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(params=LESSER, ids=lambda level: level.name, scope="module")
def lesser(request: pytest.FixtureRequest, made_ahead: Path) -> CpuBackend:
    compiled = made_ahead / "kernels"
    backend = CpuBackend(compiled, prebuilt=compiled / "none", processor=request.param.needs)
    assert backend.level == request.param.name
    return backend


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
def test_deltas_equal_the_formula(lesser: CpuBackend, kind: str, dtype: torch.dtype) -> None:
    parts = [Placed(0, cast(KINDS[kind]((40, 50), 3), dtype))]
    spans = [(0, 1), (2, 5), (5, 14)]
    x, out = torch.randn(16, 50).to(dtype), torch.randn(16, 40).to(dtype)
    expected = expected64(x, out, [parts] * 3, spans)
    staged = lesser.stage(parts)
    lesser.apply(x, out, [staged] * 3, spans)
    assert close(out, expected, TOLERANCE[dtype])
    base, rebuilt = torch.randn(40, 50).to(dtype), torch.empty(40, 50, dtype=dtype)
    lesser.reconstruct(packed_for(lesser, base), staged, rebuilt)
    wanted = base.double() + dense64(parts[0].delta)
    assert close(unpacked(lesser, rebuilt), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("window", [None, 20])
def test_attention_equals_the_reference(
    lesser: CpuBackend, window: int | None, dtype: torch.dtype
) -> None:
    case = PagedCase([100, 33], 6, 2, 24, dtype)
    spans = [(99, 100), (4, 33)]
    found, expected = (case.attend(k, spans, window) for k in (lesser, ReferenceBackend()))
    assert float((found - expected).abs().max()) <= 4 * TOLERANCE[dtype]


def test_a_row_is_bit_equal_alone_and_among_others(lesser: CpuBackend) -> None:
    for kind in KINDS:
        staged = lesser.stage([Placed(0, KINDS[kind]((40, 50), 3))])
        x, together, alone = torch.randn(13, 50), torch.zeros(13, 40), torch.zeros(13, 40)
        lesser.apply(x, together, [staged], [(0, 13)])
        for i in range(13):
            lesser.apply(x, alone, [staged], [(i, i + 1)])
        assert torch.equal(together, alone), kind


def test_sixteen_bit_values_survive_the_round_trip_through_float32(lesser: CpuBackend) -> None:
    """Every bfloat16 and float16 value, added to a bias of zero, comes back as it was."""
    zero = Placed(0, KINDS["bias alone"]((65536, 8), 0))
    assert isinstance(zero.delta.bias, torch.Tensor)
    zero.delta.bias.zero_()
    for dtype in (torch.bfloat16, torch.float16):
        bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)[None]
        out = bits.view(dtype).clone()
        expected = out.float() + 0.0
        lesser.apply(torch.zeros(1, 8, dtype=dtype), out, [lesser.stage([zero])], [(0, 1)])
        assert torch.equal(out.float().nan_to_num(7.0), expected.nan_to_num(7.0))


def test_coded_biases_are_equal_to_the_bit(lesser: CpuBackend) -> None:
    for bits in range(2, 9):
        bias = random_bias(37, bits, torch.Generator().manual_seed(bits))
        found = lesser.bias(lesser.stage([Placed(0, DenseDelta((37, 8), None, bias))]), 37)
        assert found is not None
        assert torch.equal(found.double(), bias64(bias, 37))


@pytest.mark.parametrize("kept", [1, 4, 16, 17, 60])
def test_every_level_draws_the_same_columns(
    lesser: CpuBackend, cpu_backend: CpuBackend, kept: int
) -> None:
    draw = ColumnDraw(2**64 - 1, 2**63 + 7, 37, 150, 60, kept=kept, kept_of_rest=min(kept, 30))
    assert torch.equal(lesser.draw_columns(draw), cpu_backend.draw_columns(draw))


def test_levels_are_ordered_and_the_last_runs_anywhere() -> None:
    assert [level.name for level in LEVELS] == ["avx512bf16", "avx512", "avx2", "generic"]
    assert [level.name for level in supported_levels(frozenset())] == ["generic"]
    assert supported_levels(LEVELS[1].needs)[0].name == "avx512"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_linears_on_the_lattice_equal_the_reference(lesser: CpuBackend, bits: int) -> None:
    weight, x = lattice(bits, 24), torch.randn(6, 24)
    found, expected = torch.empty(2, 6, 37)
    lesser.linear_lattice(x, weight, None, found)
    ReferenceBackend().linear_lattice(x, weight, None, expected)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
