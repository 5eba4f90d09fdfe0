"""Linears on the lattice: every backend against the formula in float64, rows one by one, factors
that are added in the same pass."""

import pytest
import torch
from torch import Tensor

from tests.kernels.lattices import lattice
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend, ReadsLattices
from tsugiki_kernels.lattice import LatticeWeight, dense

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}
# bits, columns: SmolLM2's widths, an odd number of groups, blocks without a Paley matrix
FORMS = [(2, 576), (2, 24), (3, 64), (4, 192), (4, 40), (2, 344)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def multiply(kernels: KernelBackend, *arguments: object) -> None:
    assert isinstance(kernels, ReadsLattices)
    kernels.linear_lattice(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bits", "columns"), FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_linear_on_the_lattice_is_its_dense_product(
    kernels: KernelBackend, bits: int, columns: int, dtype: torch.dtype
) -> None:
    weight = lattice(bits, columns)
    x, bias = random(9, columns, seed=2).to(dtype), random(37, seed=3)
    out = torch.full((9, 37), 7.0, dtype=dtype)
    multiply(kernels, x, weight, bias, out, [(0, 1), (2, 8)])
    expected = x.double() @ dense(weight).double().T + bias.double()
    expected[[1, 8]] = 7.0
    worst = float((out.double() - expected).abs().max())
    assert worst <= TOLERANCE[dtype] * float(expected.abs().max())


@pytest.mark.compiler
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(
    cpu_backend: CpuBackend, bits: int, dtype: torch.dtype
) -> None:
    """Rows are decoded once for many tokens, and as they are met for few."""
    weight = lattice(bits, 192, rows=70)
    x = random(11, 192, seed=4).to(dtype)
    together = torch.empty(11, 70, dtype=dtype)
    cpu_backend.linear_lattice(x, weight, None, together)
    for count in (1, 2, 3):
        for row in range(0, 12 - count, count):
            alone = torch.empty(count, 70, dtype=dtype)
            cpu_backend.linear_lattice(x[row : row + count], weight, None, alone)
            assert torch.equal(alone, together[row : row + count])


@pytest.mark.compiler
@pytest.mark.parametrize("offset", [0, 32, 24])
def test_factors_in_the_same_pass_end_in_the_same_bits(
    cpu_backend: CpuBackend, offset: int
) -> None:
    weight, x = lattice(2, 192, rows=96), random(5, 192, seed=5).bfloat16()
    a, b = random(6, 192, seed=6).bfloat16(), random(40, 6, seed=7).bfloat16()
    staged = cpu_backend.stage([Placed(offset, LowRankDelta(a, b, 0.5, None))])
    found, expected = torch.empty(2, 5, 96, dtype=torch.bfloat16)
    cpu_backend.linear_lattice(x, weight, None, expected)
    cpu_backend.apply(x, expected, [staged], [(1, 4)])

    def body(kernels: KernelBackend) -> None:
        multiply(kernels, x, weight, None, found)
        kernels.apply(x, found, [staged], [(1, 4)])

    program = cpu_backend.record(body)
    for _ in range(2):
        program.run()
        assert torch.equal(found, expected)


def test_weights_that_do_not_fit_are_refused_by_name(kernels: KernelBackend) -> None:
    good = lattice(3, 64)
    x, out = torch.zeros(2, 64), torch.zeros(2, 37)
    for field, value in (
        ("bits", 5),
        ("codes", good.codes[:, :4].contiguous()),
        ("residual", None),
        ("scales", good.scales.float()),
    ):
        fields = {name: getattr(good, name) for name in LatticeWeight.__slots__}
        with pytest.raises(
            BadArgument, match="lattice" if field in ("bits", "residual") else field
        ):
            multiply(kernels, x, LatticeWeight(**{**fields, field: value}), None, out)
