"""A recorded operation reads from a table, at each run, which deltas change which rows."""

import sys

import pytest
import torch
from torch import Tensor

from tests.kernels.deltas import KINDS
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Deltas, DeltaTable, KernelBackend, Shapes, Span, Staged

SHAPES: Shapes = ((40, 48), (17, 40), (64, 48))
ROWS = 11
FILLINGS: list[list[Span]] = [
    [(0, 1), (1, 3), (7, 11)],
    [],
    [(0, 11)],
    [(4, 5), (5, 5), (6, 10)],
    [(1, 2)],
]


def staged_linears(kernels: KernelBackend, kind: str, seed: int) -> list[Staged | None]:
    """Of one variant, which leaves the linear alone that its seed says."""
    return [
        kernels.stage([Placed(0, KINDS[kind](shape, seed + place))])
        if place != seed % len(SHAPES)
        else None
        for place, shape in enumerate(SHAPES)
    ]


def kind_of(kind: str) -> type[Delta]:
    return type(KINDS[kind](SHAPES[0], 0))


@pytest.mark.parametrize("place", range(len(SHAPES)))
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_applies_what_its_table_holds_at_each_run(
    kernels: KernelBackend, kind: str, place: int
) -> None:
    outputs, inputs = SHAPES[place]
    variants = [staged_linears(kernels, kind, seed) for seed in range(3)]
    collected = [kernels.collect(SHAPES, linears)[0] for linears in variants]
    x, out = torch.randn(ROWS, inputs), torch.empty(ROWS, outputs)
    table = kernels.delta_table(kind_of(kind), SHAPES, ROWS, 3)
    program = kernels.record(lambda k: k.apply_table(x, out, table, place))
    for turn, spans in enumerate(FILLINGS):
        order = [(turn + i) % 3 for i in range(len(spans))]
        table.fill([collected[i] for i in order], spans)
        x.normal_()
        start = torch.randn(ROWS, outputs)
        expected = applied(kernels, x, start, [variants[i][place] for i in order], spans)
        out.copy_(start)
        program.run()
        assert torch.equal(out, expected)


def applied(
    kernels: KernelBackend, x: Tensor, start: Tensor, staged: list[Staged | None], spans: list[Span]
) -> Tensor:
    """What apply makes of it at once."""
    changed = [(s, span) for s, span in zip(staged, spans, strict=True) if s is not None]
    out = start.clone()
    kernels.apply(x, out, [s for s, _ in changed], [span for _, span in changed])
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_after_its_linear_a_table_changes_what_the_linear_wrote(
    kernels: KernelBackend, kind: str
) -> None:
    outputs, inputs = SHAPES[0]
    weight = torch.randn(outputs, inputs)
    kernels.pack(weight)
    (deltas,) = kernels.collect(SHAPES, staged_linears(kernels, kind, 1))
    table = kernels.delta_table(deltas.kind, SHAPES, ROWS, 2)
    x, out = torch.randn(ROWS, inputs), torch.empty(ROWS, outputs)

    def body(k: KernelBackend) -> None:
        k.linear(x, weight, None, out)
        k.apply_table(x, out, table, 0)

    program = kernels.record(body)
    for spans in ([(0, 2), (5, 11)], [], [(3, 4)]):
        table.fill([deltas] * len(spans), spans)
        program.run()
        found = out.clone()
        body(kernels)
        assert torch.equal(found, out)


def test_a_variant_of_several_kinds_has_a_value_for_each(kernels: KernelBackend) -> None:
    first, second = "low rank", "sign"
    linears = [
        kernels.stage([Placed(0, KINDS[first](SHAPES[0], 1))]),
        None,
        kernels.stage([Placed(0, KINDS[second](SHAPES[2], 2))]),
    ]
    kinds = {deltas.kind for deltas in kernels.collect(SHAPES, linears)}
    assert kinds == {kind_of(first), kind_of(second)}
    assert kernels.collect(SHAPES, [None] * 3) == ()


def a_table(kernels: KernelBackend) -> tuple[DeltaTable, Deltas]:
    kind = next(iter(KINDS))
    (deltas,) = kernels.collect(SHAPES, staged_linears(kernels, kind, 1))
    return kernels.delta_table(deltas.kind, SHAPES, ROWS, 2), deltas


def test_a_table_refuses_what_does_not_fit(kernels: KernelBackend) -> None:
    table, deltas = a_table(kernels)
    with pytest.raises(BadArgument, match="at most 2, found 3"):
        table.fill([deltas] * 3, [(0, 1), (1, 2), (2, 3)])
    with pytest.raises(BadArgument, match=r"\(10, 12\) is not within 11 rows"):
        table.fill([deltas], [(10, 12)])
    other = kernels.delta_table(kind_of(list(KINDS)[-1]), SHAPES, ROWS, 2)
    with pytest.raises(BadArgument, match="the table's kind"):
        other.fill([deltas], [(0, 1)])


def test_a_table_keeps_what_it_holds_and_nothing_else(kernels: KernelBackend) -> None:
    table, deltas = a_table(kernels)
    before = sys.getrefcount(deltas)
    table.fill([deltas], [(0, 1)])
    assert sys.getrefcount(deltas) == before + 1
    table.fill([], [])
    assert sys.getrefcount(deltas) == before
