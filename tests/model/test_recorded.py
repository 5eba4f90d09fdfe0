"""Which steps are replayed, which are recorded anew, and what is let go."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from tests.model.staged import SHAPES, variant
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.recorded import KEPT, RecordedStep, RecordedSteps, step_shape
from tsugiki.model.step_plan import StepPlan, select_rows
from tsugiki.model.variant_deltas import StepTables, VariantDeltas
from tsugiki.model.workspace import Workspace
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.reference import ReferenceBackend

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
        self.steps = RecordedSteps(self.workspace)
        self.deltas = VariantDeltas(SHAPES, ReferenceBackend())

    def get(self, batch: Batch, cache: KVCache = CACHE) -> RecordedStep:
        rows, wanted = len(batch.token_ids), batch.logit_rows.tolist()
        plan = StepPlan(batch.segments, rows, self.deltas)
        last = StepPlan(select_rows(batch.segments, wanted), len(wanted), self.deltas)
        shape = step_shape(batch, cache, plan, last)
        step = self.steps.get(shape, lambda: self.record(batch, cache, plan, last))
        step.fill_tables(plan, last)
        return step

    def record(self, batch: Batch, cache: KVCache, plan: StepPlan, last: StepPlan) -> RecordedStep:
        self.recorded.append(batch)
        nothing: Any = SimpleNamespace()
        tables, last_tables = (
            StepTables(part.kinds, self.deltas, part.rows, 1) for part in (plan, last)
        )
        rebuilt = plan.rebuilt.variants
        return RecordedStep(cache, rebuilt, tables, last_tables, nothing, nothing, nothing, nothing)


def test_a_step_of_the_same_shape_is_replayed_whatever_its_tokens_and_contexts() -> None:
    recorder = Recorder()
    first = recorder.get(batch(3))
    other = replace(batch(3, context=9, blocks=3), token_ids=torch.ones(3, dtype=torch.int64))
    assert recorder.get(other) is first


def test_whose_rows_they_are_and_which_are_wanted_is_told_at_each_run() -> None:
    recorder = Recorder()
    first = recorder.get(batch(3, variant=variant("dense")))
    assert recorder.get(batch(3, variant=variant("dense"))) is first
    last_row = replace(batch(3, variant=variant("dense")), logit_rows=torch.tensor([2]))
    assert recorder.get(last_row) is first


def test_another_shape_kind_of_delta_cache_or_number_of_logits_is_recorded_anew() -> None:
    recorder = Recorder()
    for step, cache in (
        (batch(3), CACHE),
        (batch(2), CACHE),
        (batch(3, variant=variant("dense")), CACHE),
        (batch(3, variant=variant("low rank")), CACHE),
        (batch(3), KVCache(CACHE.layers)),
        (replace(batch(3), logit_rows=torch.tensor([1, 2])), CACHE),
        (batch(3, blocks=9), CACHE),
    ):
        before = len(recorder.recorded)
        recorder.get(step, cache)
        assert len(recorder.recorded) == before + 1


def test_a_rebuilt_weight_belongs_to_the_step_and_goes_with_its_variant() -> None:
    recorder = Recorder()
    rebuilt = variant("dense", reconstruct_from=3)
    first = recorder.get(batch(3, variant=rebuilt))
    assert recorder.get(batch(3, variant=rebuilt)) is first
    assert recorder.get(batch(3, variant=variant("dense", reconstruct_from=3))) is not first
    fused = recorder.get(batch(3, variant=variant("dense")))
    recorder.steps.forget_variants()
    assert recorder.get(batch(3, variant=rebuilt)) is not first
    assert recorder.get(batch(3, variant=variant("dense"))) is fused


def test_the_shapes_used_last_are_kept() -> None:
    recorder = Recorder()
    for rows in range(1, KEPT + 1):
        recorder.get(batch(rows))
    recorder.get(batch(1))
    recorder.get(batch(KEPT + 1))  # the second goes
    recorder.get(batch(1))
    assert len(recorder.recorded) == KEPT + 1
    recorder.get(batch(2))
    assert len(recorder.recorded) == KEPT + 2


def test_steps_on_outgrown_buffers_are_dropped() -> None:
    recorder = Recorder()
    small = recorder.get(batch(1))
    recorder.workspace.take("x", (8,), torch.float32)
    recorder.get(batch(2))
    assert recorder.get(batch(1)) is not small


def test_a_workspace_gives_the_same_memory_until_it_has_to_grow() -> None:
    space = Workspace(torch.device("cpu"))
    first = space.take("x", (4, 2), torch.float32)
    assert space.take("x", (2, 2), torch.float32).data_ptr() == first.data_ptr()
    assert space.take("y", (4, 2), torch.float32).data_ptr() != first.data_ptr()
    growths = space.growths
    assert space.take("x", (5, 2), torch.float32).shape == (5, 2)
    assert space.growths == growths + 1
