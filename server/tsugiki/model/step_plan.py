"""Which rows of a step get what: computed once per step, before any activation exists.

Owns: `StepPlan`: for every fused linear the fused groups, the rebuilt rows and the rows left to the
base; for every norm the weight of each row. Does not know: activations, kernels, the order of
layers.
"""

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs.base import Codec, ResidentVariant, StagedLinear
from tsugiki.model.batch import Segment
from tsugiki.model.norms import NormWeights
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
    """The plan of one step over `rows` rows; a linear's part is worked out when asked for."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        self.rows = rows
        self.variant_segments = tuple((s, s.variant) for s in segments if s.variant is not None)
        self.variants = list({id(v): v for _, v in self.variant_segments}.values())

    def linear(self, name: str) -> LinearPlan | None:
        """The plan of a fused linear; None: the base's output stands for all rows."""
        if not self.variant_segments:
            return None
        return plan_linear(name, self.variant_segments, self.rows)

    def row_variants(self) -> Tensor:
        """int64 [rows], CPU: 0 for base rows, else 1 + the place of the variant in `variants`."""
        number = {id(variant): i for i, variant in enumerate(self.variants, start=1)}
        index = torch.zeros(self.rows, dtype=torch.int64)
        for segment, variant in self.variant_segments:
            index[segment.start : segment.stop] = number[id(variant)]
        return index


class StepNorms:
    """The weight of each norm for the rows of one step."""

    def __init__(self, weights: NormWeights, plan: StepPlan, device: torch.device) -> None:
        self._weights = weights
        self._stacks = weights.stack(plan.variants)  # None: all rows have the base's
        self._index = None if self._stacks is None else plan.row_variants().to(device)

    def of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """What `KernelBackend.rms_norm` takes: weight [n, dim] and each row's place in it."""
        return self._weights.stacked(name, self._stacks), self._index

    def for_rows(self, rows: Tensor) -> "StepNorms":
        """The same for a selection of the step's rows (int64 [n])."""
        chosen = copy(self)
        chosen._index = None if self._index is None else self._index[rows]
        return chosen


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
