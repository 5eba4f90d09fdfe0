"""Which rows of a step get what: computed once per step, before any activation exists.

Owns: `StepPlan` (for every fused linear the fused groups, the rebuilt rows and the rows left to the
base; for every norm the weight of each row) and `Planner`, which keeps the last plan because decode
steps repeat their segments. Does not know: activations, kernels, the order of layers.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs.base import Codec, ResidentVariant, StagedLinear
from tsugiki.model.batch import Segment
from tsugiki_kernels.interface import Span, Staged


@dataclass(frozen=True, slots=True)
class FusedGroup:
    """Deltas of one codec that stay compressed: one kernel call."""

    codec: Codec
    staged: Sequence[Staged]
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Rows of one variant that multiply with a reconstructed dense weight and skip the base."""

    linear: StagedLinear
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """What one fused linear does in this step beside, or instead of, the base."""

    fused: Sequence[FusedGroup]
    rebuilt: Sequence[Rebuilt]
    base_rows: Sequence[Span]  # rows not rebuilt; maximal runs, ascending


class StepPlan:
    """The plan of one step over `rows` rows; parts are worked out when first asked for."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        self.rows = rows
        self.segments = tuple(segments)
        self.variant_segments = tuple((s, s.variant) for s in segments if s.variant is not None)
        self._linears: dict[str, LinearPlan | None] = {}
        self._variants = list({id(v): v for _, v in self.variant_segments}.values())
        self._changed_vectors = frozenset(n for v in self._variants for n in v.vectors)
        self._row_variant: Tensor | None = None
        self._tables: dict[str, Tensor] = {}

    def linear(self, name: str) -> LinearPlan | None:
        """The plan of a fused linear; None: the base's output stands for all rows."""
        if not self.variant_segments:
            return None
        if name not in self._linears:
            self._linears[name] = plan_linear(name, self.variant_segments, self.rows)
        return self._linears[name]

    def changes_vector(self, name: str) -> bool:
        """Whether some row of the step has its own weight for this norm."""
        return name in self._changed_vectors

    def vector_rows(self, name: str, base: Tensor, plus_one: bool) -> Tensor:
        """The weight of a norm for every row: [rows, dim], dtype and device of `base`.

        base: [dim], as the decoder multiplies with it; `plus_one` says that this is 1 + weight.
        """
        if name not in self._tables:
            own = [v.vectors.get(name) for v in self._variants]
            shifted = [None if w is None else w.to(base.device) + int(plus_one) for w in own]
            table = [base] + [base if w is None else w.to(base.dtype) for w in shifted]
            self._tables[name] = torch.stack(table)
        return self._tables[name].index_select(0, self._variant_of_rows(base.device))

    def _variant_of_rows(self, device: torch.device) -> Tensor:
        """int64 [rows]: 0 for base rows, 1 + position in the list of variants for the others."""
        if self._row_variant is None:
            number = {id(v): i for i, v in enumerate(self._variants, start=1)}
            index = torch.zeros(self.rows, dtype=torch.int64)
            for segment, variant in self.variant_segments:
                index[segment.start : segment.stop] = number[id(variant)]
            self._row_variant = index.to(device)
        return self._row_variant


def plan_linear(
    name: str, segments: Sequence[tuple[Segment, ResidentVariant]], rows: int
) -> LinearPlan | None:
    """Group the rows of one fused linear. Fused or rebuilt follows from the request's own chunk."""
    fused: dict[str, tuple[Codec, list[Staged], list[Span]]] = {}
    rebuilt: dict[int, tuple[StagedLinear, list[Span]]] = {}
    for segment, variant in segments:
        linear = variant.linears.get(name)
        if linear is None:
            continue
        span = (segment.start, segment.stop)
        threshold = linear.reconstruct_from
        if threshold is not None and segment.chunk_tokens >= threshold:
            rebuilt.setdefault(id(linear), (linear, []))[1].append(span)
        else:
            _, staged, spans = fused.setdefault(linear.codec.name, (linear.codec, [], []))
            staged.append(linear.staged)
            spans.append(span)
    if not fused and not rebuilt:
        return None
    skipped = sorted(span for _, spans in rebuilt.values() for span in spans)
    return LinearPlan(
        fused=[FusedGroup(*group) for group in fused.values()],
        rebuilt=[Rebuilt(*entry) for entry in rebuilt.values()],
        base_rows=remaining_rows(skipped, rows),
    )


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


class Planner:
    """Keeps the last plan: successive decode steps have the same segments.

    The kept plan holds its variants in memory; `forget` lets go of them.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._plan = StepPlan((), 0)

    def plan(self, segments: Sequence[Segment], rows: int) -> StepPlan:
        """The plan of these segments."""
        key = (rows, [(id(s.variant), s.start, s.stop, s.chunk_tokens) for s in segments])
        if key != self._key:  # ids are sound: the kept plan keeps its variants alive
            self._plan, self._key = StepPlan(segments, rows), key
        return self._plan

    def forget(self) -> None:
        """Drop the kept plan and with it the last references to its variants."""
        self._key, self._plan = None, StepPlan((), 0)
