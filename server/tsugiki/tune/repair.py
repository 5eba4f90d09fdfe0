"""Repair: a short distillation of a compressed variant against its uncompressed fine-tune.

Owns: the settings that suit a variant file, and what is reported. The loss is LLM-Neo's
(distill/neo.py), by default KL(fine-tune || variant) alone. Does not know: the loop
(distill/trainer.py), codecs, file formats, command lines.

Learning rates are per kind of parameter and relative to its own size (codecs/retune.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.progress import Progress
from tsugiki.distill.batches import batched, shared_beginning, split, stream
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.distill.teacher import LiveTeacher, View
from tsugiki.distill.trainer import Record, TrainingPlan, mean_losses, train
from tsugiki.tune.student import NORMS, Student

LEARNING_RATES = {
    "factors": 0.01,
    "biases": 0.03,
    "low_rank_a": 0.003,
    "low_rank_b": 0.003,
    "codebooks": 0.01,
    "cores": 0.003,
    "values": 0.01,
    NORMS: 2e-4,
}
BETAS = (0.9, 0.98)
WARMUP = 0.08


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """How long and on what."""

    steps: int = 100
    batch_tokens: int = 1024  # padded tokens of one step, less what all prompts begin with
    held_out: int = 64  # dialogues that are never trained on: KL before and after
    learning_rate: float = 1.0  # a factor on LEARNING_RATES
    alpha: float = 1.0  # weight of the KL; the rest is cross-entropy with the answers
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Repaired:
    """KL to the fine-tune per answer token on the dialogues held out."""

    kl_before: float
    kl_after: float


def repair(
    student: Student,
    teacher: Any,
    dialogues: Sequence[Dialogue],
    plan: RepairPlan,
    progress: Progress,
    record: Record,
) -> Repaired:
    """Train the student in place, from the last checkpoint on where there is one.

    Raises:
        InvalidRequest: too few dialogues to hold some out. ConfigError: a checkpoint of another
            run.
    """
    training, held_out = split(dialogues, plan.held_out, plan.seed)
    width = min(model.config.get_text_config().vocab_size for model in (student.model, teacher))
    objective = NeoObjective(
        student.model, LiveTeacher(teacher, View(width)), Mixture(plan.alpha, width=width)
    )
    shared = shared_beginning(dialogues)
    tests = list(batched(held_out, plan.batch_tokens, shared))
    before = mean_losses(objective, tests)["kl"]
    progress.stage(f"KL {before:.5f} per answer token on {len(held_out)} dialogues held out")
    groups = [
        ParameterGroup(parameters, plan.learning_rate * LEARNING_RATES[kind])
        for kind, parameters in student.kinds().items()
    ]
    batches = stream(training, plan.batch_tokens, plan.seed, shared)
    training_plan = TrainingPlan(plan.steps, warmup=WARMUP, clip=None, betas=BETAS)
    train(groups, objective, batches, training_plan, progress, record)
    return Repaired(before, mean_losses(objective, tests)["kl"])
