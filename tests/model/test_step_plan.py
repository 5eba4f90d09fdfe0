"""Rows of a step, worked out before any activation exists."""

from typing import Any

from tests.model.staged import SHAPES, variant
from tsugiki.model.batch import Segment
from tsugiki.model.step_plan import StepPlan, remaining_rows, row_places, select_rows
from tsugiki.model.variant_deltas import VariantDeltas
from tsugiki_kernels.deltas import DenseDelta, LowRankDelta
from tsugiki_kernels.reference import ReferenceBackend


def plan(*segments: Segment) -> StepPlan:
    deltas = VariantDeltas(SHAPES, ReferenceBackend())
    return StepPlan(segments, segments[-1].stop, deltas)


def test_a_step_of_the_base_alone_has_no_plan() -> None:
    found = plan(Segment(None, 0, 5, 5))
    assert found.rebuilt.linear("layers.0.qkv") is None
    assert found.variants == found.rebuilt.segments == found.kinds == ()
    assert found.fused == []


def test_every_variant_of_a_step_is_told_with_its_rows_and_kinds() -> None:
    one, two, both = variant("dense"), variant("dense"), variant("dense", "low rank")
    found = plan(
        Segment(None, 0, 2, 1), Segment(one, 2, 4, 1), Segment(two, 4, 5, 1), Segment(both, 5, 9, 4)
    )
    assert [span for _, span in found.fused] == [(2, 4), (4, 5), (5, 9)]
    kinds = [[deltas.kind for deltas in group] for group, _ in found.fused]
    assert kinds == [[DenseDelta], [DenseDelta], [DenseDelta, LowRankDelta]]
    assert found.kinds == (DenseDelta, LowRankDelta)
    assert found.rebuilt.linear("layers.0.qkv") is None


def test_long_chunks_are_rebuilt_once_per_variant_and_skip_the_base() -> None:
    one = variant("dense", reconstruct_from=4)
    found = plan(
        Segment(None, 0, 1, 1),
        Segment(one, 1, 3, 1),
        Segment(one, 3, 7, 4),
        Segment(one, 7, 13, 6),
        Segment(variant("dense"), 13, 14, 1),
    )
    linear = found.rebuilt.linear("layers.0.qkv")
    assert linear is not None
    assert [rebuilt.spans for rebuilt in linear.rebuilt] == [[(3, 7), (7, 13)]]
    assert linear.base_rows == [(0, 3), (13, 14)]
    assert [len(group) for group, _ in found.fused] == [1, 0, 0, 1]
    assert found.rebuilt.linear("layers.0.down") is None, "the variant does not change it"


def test_steps_of_one_shape_differ_in_variants_and_rows_but_not_in_what_is_rebuilt() -> None:
    deltas = VariantDeltas(SHAPES, ReferenceBackend())
    long = variant("dense", reconstruct_from=4)

    def shape(*segments: Segment) -> Any:
        return StepPlan(segments, 6, deltas).shape

    one = shape(Segment(None, 0, 4, 1), Segment(variant("dense"), 4, 6, 1))
    assert one == shape(Segment(variant("dense"), 0, 3, 1), Segment(variant("dense"), 3, 6, 1))
    assert one != shape(Segment(None, 0, 6, 1))
    assert one != shape(Segment(None, 0, 4, 1), Segment(variant("low rank"), 4, 6, 1))
    rebuilt = shape(Segment(None, 0, 2, 1), Segment(long, 2, 6, 4))
    assert rebuilt != shape(Segment(None, 0, 1, 1), Segment(long, 1, 6, 5))
    other = variant("dense", reconstruct_from=4)
    assert rebuilt != shape(Segment(None, 0, 2, 1), Segment(other, 2, 6, 4))


def test_the_deltas_of_a_variant_are_put_together_once_until_they_are_forgotten() -> None:
    kernels = ReferenceBackend()
    deltas, one = VariantDeltas(SHAPES, kernels), variant("dense", reconstruct_from=4)
    first = deltas.fused(one, 1)
    assert deltas.fused(one, 3) is first
    assert deltas.fused(one, 4) == ()
    assert deltas.fused(one, 1) is first
    deltas.forget()
    assert deltas.fused(one, 1) is not first


def test_remaining_rows_are_maximal_runs() -> None:
    assert remaining_rows([], 3) == [(0, 3)]
    assert remaining_rows([(0, 3)], 3) == []
    assert remaining_rows([(1, 2), (2, 4), (6, 7)], 9) == [(0, 1), (4, 6), (7, 9)]


def test_rows_have_the_place_of_their_variant() -> None:
    one, two = variant("dense"), variant("dense")
    found = plan(Segment(None, 0, 1, 1), Segment(one, 1, 3, 2), Segment(two, 3, 4, 1))
    assert row_places(found.variants, {id(one): 7, id(two): 0}, 4) == [0, 7, 7, 0]


def test_a_selection_of_rows_renumbers_segments_and_drops_empty_ones() -> None:
    one, two = variant("dense"), variant("dense")
    segments = [Segment(None, 0, 3, 1), Segment(one, 3, 40, 37), Segment(two, 40, 50, 10)]
    selected = select_rows(segments, [0, 2, 39])
    assert [(s.variant, s.start, s.stop, s.chunk_tokens) for s in selected] == [
        (None, 0, 2, 1),
        (one, 2, 3, 1),
    ]
