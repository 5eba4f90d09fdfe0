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
from tsugiki.model.norms import NormWeights, Stacks
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
    """The plan of one step over `rows` rows; a linear's part is worked out when first asked for."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        self.rows = rows
        self.variant_segments = tuple((s, s.variant) for s in segments if s.variant is not None)
        self.variants = list({id(v): v for _, v in self.variant_segments}.values())
        self._linears: dict[str, LinearPlan | None] = {}

    def linear(self, name: str) -> LinearPlan | None:
        """The plan of a fused linear; None: the base's output stands for all rows."""
        if not self.variant_segments:
            return None
        if name not in self._linears:
            self._linears[name] = plan_linear(name, self.variant_segments, self.rows)
        return self._linears[name]

    def row_variants(self) -> Tensor:
        """int64 [rows], CPU: 0 for base rows, else 1 + the place of the variant in `variants`."""
        number = {id(variant): i for i, variant in enumerate(self.variants, start=1)}
        index = torch.zeros(self.rows, dtype=torch.int64)
        for segment, variant in self.variant_segments:
            index[segment.start : segment.stop] = number[id(variant)]
        return index


@dataclass(frozen=True, slots=True)
class StepNorms:
    """The norms of one step, when some of its variants have their own."""

    weights: NormWeights
    stacks: Stacks
    row_variants: Tensor  # int64 [rows], see StepPlan.row_variants

    def rows(self, name: str) -> Tensor:
        """[rows, dim]: the weight of a norm for every row."""
        return self.weights.rows(name, self.stacks, self.row_variants)


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

    What it keeps holds variants in memory; `forget` lets go of them.
    """

    def __init__(self, norms: NormWeights, device: torch.device) -> None:
        self._weights = norms
        self._device = device
        self._key: object = None
        self._kept: tuple[StepPlan, StepNorms | None] = (StepPlan((), 0), None)

    def plan(self, segments: Sequence[Segment], rows: int) -> tuple[StepPlan, StepNorms | None]:
        """The plan of these segments, and the norms of their rows (None: the base's for all)."""
        key = (rows, [(id(s.variant), s.start, s.stop, s.chunk_tokens) for s in segments])
        if key != self._key:  # ids are sound: the kept plan keeps its variants alive
            plan = StepPlan(segments, rows)
            self._kept, self._key = (plan, self._norms(plan)), key
        return self._kept

    def forget(self) -> None:
        """Drop the kept plan and with it the last references to its variants."""
        self._key, self._kept = None, (StepPlan((), 0), None)
        self._weights.forget()

    def _norms(self, plan: StepPlan) -> StepNorms | None:
        stacks = self._weights.stack(plan.variants)
        if stacks is None:
            return None
        return StepNorms(self._weights, stacks, plan.row_variants().to(self._device))
