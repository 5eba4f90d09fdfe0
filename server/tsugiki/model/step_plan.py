"""Which rows of a step get what: computed once per step, before any activation exists.

Owns: `StepPlan`: the variants of some rows with what they add, the rows that multiply with a
rebuilt weight and the rows left to the base. Does not know: activations, the order of layers.
"""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki.model.batch import Segment
from tsugiki.model.variant_deltas import Fused, VariantDeltas, is_rebuilt
from tsugiki_kernels.deltas import Delta
from tsugiki_kernels.interface import Span


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Rows of one variant that multiply with a reconstructed dense weight and skip the base."""

    linear: StagedLinear
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """Which rows of one fused linear skip the base."""

    rebuilt: Sequence[Rebuilt]
    base_rows: Sequence[Span]  # the others; maximal runs, ascending


@dataclass(frozen=True, slots=True)
class RebuiltRows:
    """The rows of a step that multiply with weights rebuilt for their variants: all that recorded
    operations know of variants by themselves."""

    rows: int  # of the step
    segments: tuple[tuple[Segment, ResidentVariant], ...]

    @property
    def variants(self) -> tuple[ResidentVariant, ...]:
        """Whose weights they are."""
        return tuple(variant for _, variant in self.segments)

    def linear(self, name: str) -> LinearPlan | None:
        """The rows of a fused linear that skip the base; None: none do."""
        spans: dict[int, tuple[StagedLinear, list[Span]]] = {}
        for segment, variant in self.segments:
            linear = variant.linears.get(name)
            if linear is not None and is_rebuilt(linear, segment.chunk_tokens):
                own = spans.setdefault(id(linear), (linear, []))[1]
                own.append((segment.start, segment.stop))
        if not spans:
            return None
        skipped = sorted(span for _, own in spans.values() for span in own)
        return LinearPlan(
            rebuilt=[Rebuilt(*entry) for entry in spans.values()],
            base_rows=remaining_rows(skipped, self.rows),
        )


class StepPlan:
    """The plan of some rows of a step."""

    def __init__(self, segments: Sequence[Segment], rows: int, deltas: VariantDeltas) -> None:
        self.segments = segments
        self.rows = rows
        self.variants = tuple((s, s.variant) for s in segments if s.variant is not None)
        rebuilt = tuple((s, v) for s, v in self.variants if deltas.rebuilds(v, s.chunk_tokens))
        self.rebuilt = RebuiltRows(rows, rebuilt)
        self.fused: list[Fused] = [
            (deltas.fused(s.variant, s.chunk_tokens), (s.start, s.stop))
            for s in segments
            if s.variant is not None or deltas.of_base
        ]

    @cached_property
    def kinds(self) -> tuple[type[Delta], ...]:
        """The kinds of deltas that stay compressed, by name."""
        kinds = {deltas.kind for group, _ in self.fused for deltas in group}
        return tuple(sorted(kinds, key=lambda kind: kind.__name__))

    @property
    def shape(self) -> Hashable:
        """Equal for plans whose steps ask for the same operations, as long as the variants in
        `rebuilt` are alive."""
        segments = self.rebuilt.segments
        rebuilt = tuple((id(v), s.start, s.stop, s.chunk_tokens) for s, v in segments)
        return self.rows, self.kinds, rebuilt


def remaining_rows(skipped: Sequence[Span], rows: int) -> list[Span]:
    """The maximal runs of 0..rows outside `skipped` (ascending, disjoint)."""
    runs, at = [], 0
    for start, stop in skipped:
        if at < start:
            runs.append((at, start))
        at = stop
    if at < rows:
        runs.append((at, rows))
    return runs


def select_rows(segments: Sequence[Segment], rows: Sequence[int]) -> list[Segment]:
    """The segments over a selection of rows (ascending), renumbered from 0; empty ones vanish.

    A chunk counts as many tokens as it keeps rows: lm_head sees one row of an ordinary prefill.
    """
    selected = []
    for segment in segments:
        start, stop = bisect_left(rows, segment.start), bisect_left(rows, segment.stop)
        if start < stop:
            tokens = min(segment.chunk_tokens, stop - start)
            selected.append(Segment(segment.variant, start, stop, tokens))
    return selected


def row_places(
    variants: Sequence[tuple[Segment, ResidentVariant]], places: dict[int, int], rows: int
) -> list[int]:
    """For each row the place of its variant, by the variant's id; 0 for rows of the base."""
    found = [0] * rows
    for segment, variant in variants:
        found[segment.start : segment.stop] = [places[id(variant)]] * (segment.stop - segment.start)
    return found
