"""The dense linear against float64, on every instruction set, and its solo law."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.weights import packed_for
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.cpu.build import cpu_flags, supported_levels
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend, Span
from tsugiki_kernels.reference import ReferenceBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the sum of |x w|: float32 adds about inputs / 16 numbers a lane. Then the output is rounded.
SUM_ERROR = 2e-6
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


# avx512 has the code of avx512bf16 but for one product, whose fallback the lesser ones run as well
LEVELS = {level.name: level for level in supported_levels(cpu_flags()) if level.name != "avx512"}


def backend_named(name: str, request: pytest.FixtureRequest) -> KernelBackend:
    if name == "reference":
        return ReferenceBackend()
    compiled: Path = request.getfixturevalue("compiled")
    found = CpuBackend(compiled, prebuilt=compiled / "none", processor=LEVELS[name].needs)
    assert found.level == name
    return found


@pytest.fixture(params=["reference", *LEVELS], scope="module")
def backend(request: pytest.FixtureRequest) -> KernelBackend:
    """The reference, and the kernels on each instruction set of this processor."""
    return backend_named(request.param, request)


@pytest.fixture(params=LEVELS, scope="module")
def level(request: pytest.FixtureRequest) -> KernelBackend:
    """The kernels on each instruction set. (The reference's sums depend on the number of rows.)"""
    return backend_named(request.param, request)


def random_case(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [rows, inputs], a view into wider rows, and weight [outputs, inputs]."""
    g = torch.Generator().manual_seed(rows * 1000 + outputs + inputs)
    wide = torch.randn(rows, inputs + 5, generator=g).to(dtype)
    return wide[:, 2 : inputs + 2], torch.randn(outputs, inputs, generator=g).to(dtype)


def assert_equals_float64(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """Within the rounding of the output and of float32 sums."""
    expected = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        expected += bias.double()
        scale += bias.double().abs()
    allowed = SUM_ERROR * scale + ROUNDING[out.dtype] * expected.abs() + 1e-7
    assert bool(((out.double() - expected).abs() <= allowed).all())


def product(kernels: KernelBackend, x: Tensor, weight: Tensor) -> Tensor:
    out = torch.full((len(x), len(weight)), 7.0, dtype=x.dtype)
    kernels.linear(x, packed_for(kernels, weight), None, out)
    return out


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (24, 64), (37, 95), (16, 33), (5, 700)])
def test_a_linear_equals_float64(
    backend: KernelBackend, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    for rows in (1, 2, 3, 8, 17):
        x, weight = random_case(rows, outputs, inputs, dtype)
        assert_equals_float64(product(backend, x, weight), x, weight)


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_many_rows_and_long_ones_equal_float64(backend: KernelBackend, dtype: torch.dtype) -> None:
    for rows, outputs, inputs in ((300, 40, 1100), (70, 600, 96)):
        x, weight = random_case(rows, outputs, inputs, dtype)
        assert_equals_float64(product(backend, x, weight), x, weight)


@pytest.mark.compiler
@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16])
def test_the_bias_is_added_before_the_one_rounding(
    backend: KernelBackend, bias_dtype: torch.dtype
) -> None:
    x, weight = random_case(5, 43, 64, torch.bfloat16)
    bias = torch.randn(43).to(bias_dtype)
    out = torch.empty(5, 43, dtype=torch.bfloat16)
    backend.linear(x, packed_for(backend, weight), bias, out)
    assert_equals_float64(out, x, weight, bias)


@pytest.mark.compiler
def test_a_float32_output_of_16_bit_operands_is_not_rounded(backend: KernelBackend) -> None:
    x, weight = random_case(5, 43, 64, torch.bfloat16)
    out = torch.empty(5, 43)
    backend.linear(x, packed_for(backend, weight), None, out)
    assert_equals_float64(out, x, weight)
    assert torch.equal(out.bfloat16(), product(backend, x, weight))


@pytest.mark.compiler
def test_rows_and_columns_outside_are_left_alone(backend: KernelBackend) -> None:
    x, weight = random_case(9, 20, 48, torch.float32)
    wide = torch.full((9, 31), 7.0)
    spans = [(1, 2), (4, 4), (5, 8)]
    backend.linear(x, packed_for(backend, weight), None, wide[:, 3:23], spans)
    inside = torch.zeros(9, 31, dtype=torch.bool)
    for start, stop in spans:
        inside[start:stop, 3:23] = True
        assert_equals_float64(wide[start:stop, 3:23], x[start:stop], weight)
    assert bool((wide[~inside] == 7.0).all())


@pytest.mark.compiler
def test_no_rows_no_outputs_and_no_inputs_are_fine(backend: KernelBackend) -> None:
    assert product(backend, torch.ones(0, 8), torch.ones(5, 8)).shape == (0, 5)
    assert product(backend, torch.ones(3, 8), torch.ones(0, 8)).shape == (3, 0)
    assert torch.equal(product(backend, torch.ones(3, 0), torch.ones(5, 0)), torch.zeros(3, 5))


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 576), (37, 147)])
def test_a_row_is_bit_equal_alone_and_among_any_others(
    level: KernelBackend, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    x, weight = random_case(40, outputs, inputs, dtype)
    alone = torch.cat([product(level, row[None], weight) for row in x])
    for rows in range(1, 41):
        assert torch.equal(product(level, x[:rows], weight), alone[:rows])


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_a_row_is_bit_equal_in_any_span_and_among_hundreds(
    level: KernelBackend, dtype: torch.dtype
) -> None:
    x, weight = random_case(420, 24, 1056, dtype)
    whole = product(level, x, weight)
    layouts: Sequence[Sequence[Span]] = (
        [(i, i + 1) for i in range(0, 40, 3)],
        [(7, 12), (30, 38), (38, 39), (0, 2)],
        [(13, 420)],
    )
    for spans in layouts:
        out = torch.empty_like(whole)
        level.linear(x, packed_for(level, weight), None, out, spans)
        for start, stop in spans:
            assert torch.equal(out[start:stop], whole[start:stop])


@pytest.mark.compiler
def test_threads_change_no_bit(level: KernelBackend) -> None:
    x, weight = random_case(9, 2000, 512, torch.bfloat16)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(product(level, x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.compiler
def test_an_infinite_or_missing_number_stays_visible(backend: KernelBackend) -> None:
    x, weight = random_case(3, 9, 40, torch.bfloat16)
    x[1, 39], weight[4, 3] = float("inf"), float("nan")
    out = product(backend, x, weight)
    assert bool(out[:, 4].isnan().all())
    assert bool(out[1].isfinite().logical_not().all())
    assert bool(out[0, :4].isfinite().all())


@pytest.mark.compiler
def test_a_linear_refuses_operands_that_do_not_fit(kernels: KernelBackend) -> None:
    x, weight, out = torch.ones(4, 8), torch.ones(6, 8), torch.ones(4, 6)
    with pytest.raises(BadArgument, match=r"weight: expected \[out, in\]"):
        kernels.linear(x, weight.double(), None, out)
    with pytest.raises(BadArgument, match="weight: expected a contiguous"):
        kernels.linear(x, torch.ones(8, 6).T, None, out)
    with pytest.raises(BadArgument, match=r"x: expected .* \(4, 8\)"):
        kernels.linear(torch.ones(4, 7), weight, None, out)
    with pytest.raises(BadArgument, match="x: expected unit stride"):
        kernels.linear(torch.ones(8, 4).T, weight, None, out)
    with pytest.raises(BadArgument, match=r"out: expected .* \(4, 6\)"):
        kernels.linear(x, weight, None, torch.ones(4, 5))
    with pytest.raises(BadArgument, match=r"out: expected torch\.float32"):
        kernels.linear(x, weight, None, out.bfloat16())
    with pytest.raises(BadArgument, match="bias: expected shape"):
        kernels.linear(x, weight, torch.ones(5), out)
    with pytest.raises(BadArgument, match="bias: expected dtype"):
        kernels.linear(x, weight, torch.ones(6).double(), out)
    with pytest.raises(BadArgument, match=r"spans: \(3, 5\) is not within the 4 rows"):
        kernels.linear(x, weight, None, out, [(0, 1), (3, 5)])
