"""Rows, groups and weights of a step, worked out before any activation exists."""

from types import SimpleNamespace
from typing import Any

import torch

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki.model.batch import Segment
from tsugiki.model.norms import NormWeights
from tsugiki.model.step_plan import StepNorms, StepPlan, remaining_rows, select_rows


def variant(
    codec: str = "a", reconstruct_from: int | None = None, vectors: Any = None
) -> ResidentVariant:
    named: Any = SimpleNamespace(name=codec)
    staged: Any = SimpleNamespace(nbytes=0)
    return ResidentVariant(
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
    assert plan.variants == []


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
    stored = {"n": torch.tensor([1.0, 1.0]), "m": torch.tensor([5.0, 6.0]), "k": torch.ones(3)}
    segments = [
        Segment(None, 0, 1, 1),
        Segment(variant("a", vectors={"n": torch.tensor([3.0, 4.0])}), 1, 3, 2),
        Segment(variant("b"), 3, 4, 1),
    ]
    for plus in (0, 1):
        weights = NormWeights(stored, plus_one=bool(plus))
        norms = StepNorms(weights, StepPlan(segments, 4), torch.device("cpu"))
        assert rows_of(norms, "n", plus) == [[1, 1], [3, 4], [3, 4], [1, 1]]
        assert rows_of(norms, "m", plus) == [[5, 6]] * 4
        assert rows_of(norms.for_rows(torch.tensor([0, 2])), "n", plus) == [[1, 1], [3, 4]]
        assert norms.of("k")[0].shape[1] == 3


def rows_of(norms: StepNorms, name: str, plus: int) -> Any:
    weight, index = norms.of(name)
    assert index is not None
    return (weight[index] - plus).tolist()


def test_with_the_norms_of_the_base_no_row_needs_a_place() -> None:
    weights, plan = (
        NormWeights({"n": torch.ones(2)}, plus_one=False),
        StepPlan([Segment(variant(), 0, 2, 1)], 2),
    )
    weight, index = StepNorms(weights, plan, torch.device("cpu")).of("n")
    assert index is None
    assert weight.tolist() == [[1, 1]]


def test_a_selection_of_rows_renumbers_segments_and_drops_empty_ones() -> None:
    one, two = variant("a"), variant("b")
    segments = [Segment(None, 0, 3, 1), Segment(one, 3, 40, 37), Segment(two, 40, 50, 10)]
    selected = select_rows(segments, [0, 2, 39])
    assert [(s.variant, s.start, s.stop, s.chunk_tokens) for s in selected] == [
        (None, 0, 2, 1),
        (one, 2, 3, 1),
    ]
