"""A linear whose weight is rebuilt on the way has the bits of rebuilding it first."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.kernels.deltas import KINDS, cast, dense, sparse
from tests.kernels.weights import packed_for
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend, Span, Staged


def in_one_and_in_two(
    kernels: KernelBackend,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    staged: Staged,
    spans: Sequence[Span],
) -> tuple[Tensor, Tensor]:
    """What linear_rebuilt gives, and what reconstruct and linear do."""
    weight = packed_for(kernels, weight)
    rebuilt = torch.empty_like(weight)
    kernels.reconstruct(weight, staged, rebuilt)
    one, two = torch.zeros(2, len(x), len(weight), dtype=x.dtype)
    kernels.linear_rebuilt(x, weight, bias, staged, one, spans)
    kernels.linear(x, rebuilt, bias, two, spans)
    return one, two


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_rebuilding_first_to_the_bit(
    kernels: KernelBackend, kind: str, dtype: torch.dtype
) -> None:
    staged = kernels.stage([Placed(0, cast(KINDS[kind]((40, 50), 3), dtype))])
    x, weight, bias = torch.randn(9, 50).to(dtype), torch.randn(40, 50).to(dtype), torch.randn(40)
    found, expected = in_one_and_in_two(kernels, x, weight, bias, staged, [(0, 2), (5, 9)])
    assert torch.equal(found, expected)
    assert found[[0, 1, 5, 6, 7, 8]].any(1).all()


def test_parts_may_lie_anywhere_in_a_fused_weight(kernels: KernelBackend) -> None:
    """Out of order, with gaps between them that no part covers, longer than one task takes."""
    parts = [
        Placed(600, sparse((37, 576), 1, bits=1)),
        Placed(5, sparse((563, 576), 2, rows_per_mask=32, kept=40)),
        Placed(637, sparse((20, 576), 3, rows_per_mask=1)),
    ]
    staged = kernels.stage(parts)
    x, weight = torch.randn(30, 576).bfloat16(), torch.randn(700, 576).bfloat16()
    found, expected = in_one_and_in_two(kernels, x, weight, None, staged, [(0, 30)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "delta", [sparse((40, 50), 3), dense((40, 50), 3)], ids=["sparse", "dense"]
)
def test_a_recorded_one_keeps_a_bias_that_nobody_else_keeps(
    kernels: KernelBackend, delta: Delta
) -> None:
    staged = kernels.stage([Placed(0, delta)])
    x, weight, out = torch.randn(9, 50), torch.randn(40, 50), torch.empty(9, 40)
    in_order = packed_for(kernels, weight)

    def body(recorder: KernelBackend) -> None:
        recorder.linear_rebuilt(x, in_order, torch.ones(40), staged, out, [(0, 9)])

    program = kernels.record(body)
    program.run()
    _, expected = in_one_and_in_two(kernels, x, weight, torch.ones(40), staged, [(0, 9)])
    assert torch.equal(out, expected)


def test_it_refuses_a_weight_that_the_deltas_do_not_fit(kernels: KernelBackend) -> None:
    staged = kernels.stage([Placed(0, sparse((40, 50), 3))])
    x, out = torch.randn(9, 50), torch.zeros(9, 40)
    with pytest.raises(BadArgument, match="x: expected"):
        kernels.linear_rebuilt(x[:, 1:], torch.randn(40, 50), None, staged, out, [(0, 9)])
    with pytest.raises(BadArgument, match="spans"):
        kernels.linear_rebuilt(x, torch.randn(40, 50), None, staged, out, [(0, 10)])


@pytest.mark.compiler
def test_the_compiled_kernels_refuse_a_weight_that_is_too_small(
    cpu_backend: KernelBackend,
) -> None:
    staged = cpu_backend.stage([Placed(0, sparse((40, 50), 3))])
    x, out = torch.randn(9, 50), torch.zeros(9, 39)
    with pytest.raises(BadArgument, match=r"base: expected \[at least 40, 50\]"):
        cpu_backend.linear_rebuilt(x, torch.randn(39, 50), None, staged, out, [(0, 9)])
