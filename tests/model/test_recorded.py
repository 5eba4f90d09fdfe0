"""Which steps are replayed, which are recorded anew, and what is let go."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.recorded import KEPT, RecordedStep, RecordedSteps
from tsugiki.model.workspace import Workspace
from tsugiki_kernels.interface import AttentionBatch

CACHE = KVCache((torch.zeros(2, 4, 1, 4, 2),))


def batch(rows: int, context: int = 1, blocks: int = 1, variant: Any = None) -> Batch:
    zeros = torch.zeros(rows, dtype=torch.int64)
    where = AttentionBatch(
        query_start=torch.tensor([0, rows], dtype=torch.int32),
        context=torch.tensor([context], dtype=torch.int32),
        block_tables=torch.zeros(1, blocks, dtype=torch.int32),
        slots=zeros,
        block_size=4,
    )
    return Batch(zeros, zeros, (Segment(variant, 0, rows, rows),), where, zeros[:1])


class Recorder:
    """Stands for a decoder: counts what it is asked to record."""

    def __init__(self) -> None:
        self.recorded: list[Batch] = []
        self.workspace = Workspace(torch.device("cpu"))
        self.steps = RecordedSteps(self.record, self.workspace)

    def record(self, batch: Batch, cache: KVCache) -> RecordedStep:
        self.recorded.append(batch)
        nothing: Any = SimpleNamespace()
        return RecordedStep(nothing, cache, nothing, nothing, nothing)


def test_a_step_of_the_same_shape_is_replayed_whatever_its_tokens_and_contexts() -> None:
    recorder = Recorder()
    first = recorder.steps.get(batch(3), CACHE)
    other = replace(batch(3, context=9, blocks=3), token_ids=torch.ones(3, dtype=torch.int64))
    assert recorder.steps.get(other, CACHE) is first


def test_another_shape_variant_cache_or_choice_of_logits_is_recorded_anew() -> None:
    recorder = Recorder()
    variant = object()
    for step, cache in (
        (batch(3), CACHE),
        (batch(2), CACHE),
        (batch(3, variant=variant), CACHE),
        (batch(3), KVCache(CACHE.layers)),
        (replace(batch(3), logit_rows=torch.tensor([2])), CACHE),
        (batch(3, blocks=9), CACHE),
    ):
        before = len(recorder.recorded)
        recorder.steps.get(step, cache)
        assert len(recorder.recorded) == before + 1


def test_the_shapes_used_last_are_kept() -> None:
    recorder = Recorder()
    for rows in range(1, KEPT + 1):
        recorder.steps.get(batch(rows), CACHE)
    recorder.steps.get(batch(1), CACHE)
    recorder.steps.get(batch(KEPT + 1), CACHE)  # the second goes
    recorder.steps.get(batch(1), CACHE)
    assert len(recorder.recorded) == KEPT + 1
    recorder.steps.get(batch(2), CACHE)
    assert len(recorder.recorded) == KEPT + 2


def test_steps_on_outgrown_buffers_are_dropped_and_all_are_when_told() -> None:
    recorder = Recorder()
    small = recorder.steps.get(batch(1), CACHE)
    recorder.workspace.take("x", (8,), torch.float32)
    recorder.steps.get(batch(2), CACHE)
    assert recorder.steps.get(batch(1), CACHE) is not small
    recorder.steps.clear()
    before = len(recorder.recorded)
    recorder.steps.get(batch(1), CACHE)
    assert len(recorder.recorded) == before + 1


def test_a_workspace_gives_the_same_memory_until_it_has_to_grow() -> None:
    space = Workspace(torch.device("cpu"))
    first = space.take("x", (4, 2), torch.float32)
    assert space.take("x", (2, 2), torch.float32).data_ptr() == first.data_ptr()
    assert space.take("y", (4, 2), torch.float32).data_ptr() != first.data_ptr()
    growths = space.growths
    assert space.take("x", (5, 2), torch.float32).shape == (5, 2)
    assert space.growths == growths + 1
