"""A run depends on plan and batches alone; interrupted and resumed it ends in the same bits."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.progress import Progress
from tsugiki.distill.batches import Batch, split, stream
from tsugiki.distill.lora_student import LoraSettings, LoraStudent, attach
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.optimizer import Optimizer, ParameterGroup
from tsugiki.distill.trainer import Losses, Record, TrainingPlan, schedule, train
from tsugiki.distill.training_state import SavedRun, StateFile
from tsugiki.errors import ConfigError, InvalidRequest

QUIET = Progress(quiet=True)
PLAN = TrainingPlan(steps=6, accumulate=2, warmup=0.2)


def fresh(base: Path) -> LoraStudent:
    """In bfloat16: masters and parameters differ."""
    model = load_model(base, torch.bfloat16)
    return attach(model, LoraSettings(rank=2), seed=0, checkpointing=False)


def run(
    student: LoraStudent, dialogues: list[Dialogue], record: Record, until: int | None = None
) -> dict[str, Tensor]:
    """Trains; interrupted before the pass `until`."""
    objective = NeoObjective(student.model, None, Mixture(alpha=0.0))
    passes = 0

    def interruptible(batch: Batch) -> Losses:
        nonlocal passes
        if passes == until:
            raise KeyboardInterrupt
        passes += 1
        return objective(batch)

    batches = stream(dialogues, 48, seed=5)
    train([student.group(1e-2)], interruptible, batches, PLAN, QUIET, record)
    return {name: p.detach().clone() for name, p in student.group(1.0).parameters.items()}


def losses_in(log: Path) -> list[float]:
    return [json.loads(line)["ce"] for line in log.read_text().splitlines()]


def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(
    tiny_base: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    logs = [tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"]
    expected = run(fresh(tiny_base), dialogues, Record(logs[0]))
    record = Record(logs[1], StateFile(tmp_path / "state", {"seed": 5}), every=2)
    with pytest.raises(KeyboardInterrupt):  # within the fourth step, two are saved
        run(fresh(tiny_base), dialogues, record, until=7)
    assert len(logs[1].read_text().splitlines()) == 3
    found = run(fresh(tiny_base), dialogues, record)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    losses = [losses_in(log) for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == PLAN.steps


def test_a_run_learns(tiny_base: Path, dialogues: list[Dialogue], tmp_path: Path) -> None:
    run(fresh(tiny_base), dialogues, Record(tmp_path / "log"))
    losses = losses_in(tmp_path / "log")
    assert losses[-1] < losses[0]


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "state"
    parameter = nn.Parameter(torch.ones(2))
    taken = Optimizer([ParameterGroup({"w": parameter}, 1.0)], (0.9, 0.95), None)
    StateFile(path, {"alpha": 0.5}).save(SavedRun(3, taken.state()))
    with pytest.raises(ConfigError, match=r"alpha 0\.5, this one has 0\.9.*remove the file"):
        StateFile(path, {"alpha": 0.9}).load()
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(ConfigError, match="is damaged"):
        StateFile(path, {"alpha": 0.5}).load()


def test_however_a_step_is_divided_into_passes_its_gradient_is_the_same(
    tiny_base: Path, dialogues: list[Dialogue]
) -> None:
    found = []
    for passes in ([dialogues[:4]], [dialogues[:1], dialogues[1:4]]):
        model = load_model(tiny_base)
        student = attach(model, LoraSettings(rank=2), seed=0, checkpointing=False)
        objective = NeoObjective(student.model, None, Mixture(alpha=0.0))
        batches: Iterator[Batch] = iter([Batch(tuple(batch)) for batch in passes])
        plan = TrainingPlan(steps=1, accumulate=len(passes), clip=None)
        train([student.group(1e-3)], objective, batches, plan, QUIET, Record())
        found.append(student.group(1.0).parameters)
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-6)


def test_updates_that_16_bits_would_swallow_add_up_in_the_masters() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = Optimizer([ParameterGroup({"w": parameter}, 1e-3)], (0.9, 0.95), None)
    for _ in repeat(None, 10):
        parameter.grad = torch.ones_like(parameter)
        optimizer.collect()
        optimizer.step(1.0)
    torch.testing.assert_close(optimizer.state()["w|master"], torch.full((4,), 0.99))
    assert parameter.tolist() == [0.98828125] * 4


def test_the_schedule_warms_up_linearly_and_ends_at_zero_as_a_cosine() -> None:
    plan = TrainingPlan(steps=100, warmup=0.1)
    assert [schedule(step, plan) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule(10, plan) == 1.0
    assert schedule(55, plan) == pytest.approx(0.5)
    assert schedule(100, plan) == pytest.approx(0.0, abs=1e-12)


def test_what_is_held_out_is_never_trained_on(dialogues: list[Dialogue]) -> None:
    training, held_out = split(dialogues, held_out=64, seed=0)
    assert len(held_out) == 2  # a quarter at most
    assert sorted(map(hash, [*training, *held_out])) == sorted(map(hash, dialogues))
    with pytest.raises(InvalidRequest, match="at least 8 dialogues are needed, 3 are given"):
        split(dialogues[:3], held_out=1, seed=0)
