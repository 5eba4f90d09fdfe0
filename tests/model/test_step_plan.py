"""Rows, groups and weights of a step, worked out before any activation exists."""

from types import SimpleNamespace
from typing import Any

import torch

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki.model.batch import Segment
from tsugiki.model.step_plan import Planner, StepPlan, remaining_rows, select_rows


def variant(
    codec: str = "a", reconstruct_from: int | None = None, vectors: Any = None
) -> ResidentVariant:
    named: Any = SimpleNamespace(name=codec)
    staged: Any = SimpleNamespace(nbytes=0)
    return ResidentVariant(
        name=codec,
        digest="sha256:" + "0" * 64,
        vocab_size=10,
        linears={"layers.0.qkv": StagedLinear(named, staged, reconstruct_from)},
        vectors=vectors or {},
        embedding=None,
        lm_head_rows=None,
        nbytes=0,
    )


def test_a_step_of_the_base_alone_has_no_plan() -> None:
    plan = StepPlan([Segment(None, 0, 5, 5)], 5)
    assert plan.linear("layers.0.qkv") is None
    assert not plan.changes_vector("model.norm.weight")


def test_one_call_per_codec_covers_all_its_variants() -> None:
    one, two, three = variant("a"), variant("a"), variant("b")
    segments = [Segment(None, 0, 2, 1), Segment(one, 2, 4, 1), Segment(two, 4, 5, 1)]
    linear = StepPlan([*segments, Segment(three, 5, 9, 4)], 9).linear("layers.0.qkv")
    assert linear is not None
    assert [group.spans for group in linear.fused] == [[(2, 4), (4, 5)], [(5, 9)]]
    assert linear.rebuilt == []
    assert linear.base_rows == [(0, 9)]


def test_long_chunks_are_rebuilt_once_per_variant_and_skip_the_base() -> None:
    one = variant("a", reconstruct_from=4)
    segments = [
        Segment(None, 0, 1, 1),
        Segment(one, 1, 3, 1),
        Segment(one, 3, 7, 4),
        Segment(one, 7, 13, 6),
    ]
    linear = StepPlan([*segments, Segment(variant("b"), 13, 14, 1)], 14).linear("layers.0.qkv")
    assert linear is not None
    assert [rebuilt.spans for rebuilt in linear.rebuilt] == [[(3, 7), (7, 13)]]
    assert [group.spans for group in linear.fused] == [[(1, 3)], [(13, 14)]]
    assert linear.base_rows == [(0, 3), (13, 14)]


def test_a_linear_that_no_variant_changes_is_left_to_the_base() -> None:
    plan = StepPlan([Segment(variant(), 0, 2, 1)], 2)
    assert plan.linear("layers.0.down") is None


def test_remaining_rows_are_maximal_runs() -> None:
    assert remaining_rows([], 3) == [(0, 3)]
    assert remaining_rows([(0, 3)], 3) == []
    assert remaining_rows([(1, 2), (2, 4), (6, 7)], 9) == [(0, 1), (4, 6), (7, 9)]


def test_every_row_gets_the_norm_of_its_variant() -> None:
    base, changed = torch.tensor([1.0, 1.0]), torch.tensor([3.0, 4.0])
    segments = [
        Segment(None, 0, 1, 1),
        Segment(variant("a", vectors={"n": changed}), 1, 3, 2),
        Segment(variant("b"), 3, 4, 1),
    ]
    plan = StepPlan(segments, 4)
    assert plan.changes_vector("n")
    assert plan.vector_rows("n", base, plus_one=False).tolist() == [[1, 1], [3, 4], [3, 4], [1, 1]]
    shifted = StepPlan(segments, 4).vector_rows("n", base + 1, plus_one=True)
    assert shifted.tolist() == [[2, 2], [4, 5], [4, 5], [2, 2]]


def test_a_selection_of_rows_renumbers_segments_and_drops_empty_ones() -> None:
    one, two = variant("a"), variant("b")
    segments = [Segment(None, 0, 3, 1), Segment(one, 3, 40, 37), Segment(two, 40, 50, 10)]
    selected = select_rows(segments, [0, 2, 39])
    assert [(s.variant, s.start, s.stop, s.chunk_tokens) for s in selected] == [
        (None, 0, 2, 1),
        (one, 2, 3, 1),
    ]


def test_the_planner_keeps_a_plan_while_segments_repeat_and_lets_go_when_told() -> None:
    planner, one = Planner(), variant()
    segments = (Segment(one, 0, 2, 1),)
    first = planner.plan(segments, 2)
    assert planner.plan((Segment(one, 0, 2, 1),), 2) is first
    assert planner.plan((Segment(one, 0, 3, 1),), 3) is not first
    planner.forget()
    assert planner.plan(segments, 2) is not first
