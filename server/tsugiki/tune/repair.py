"""Repair: a short distillation of a compressed variant against its uncompressed fine-tune.

Owns: the loop, its schedule and what it reports. The loss is KL(fine-tune || variant) at the answer
positions, float32, averaged over tokens. Does not know: codecs, file formats, command lines.

Learning rates are per kind of parameter and relative to its own size (student.py); Adam, cosine
decay after a short warm-up. Batches are drawn by seed, so that a run repeats exactly.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import batches
from tsugiki.compress.hf_model import logits_at_answers
from tsugiki.compress.progress import Progress
from tsugiki.errors import InvalidRequest
from tsugiki.tune.student import Student

LEARNING_RATES = {"factors": 0.01, "biases": 0.03, "norms": 2e-4}
BETAS = (0.9, 0.98)
WARMUP_STEPS = 8
LEAST_DIALOGUES = 8


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """How long and on what."""

    steps: int = 100
    batch_tokens: int = 1024  # padded tokens of one step
    held_out: int = 64  # dialogues that are never trained on: KL before and after
    learning_rate: float = 1.0  # a factor on LEARNING_RATES
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
) -> Repaired:
    """Train the student in place.

    Raises:
        InvalidRequest: too few dialogues to hold some out.
    """
    train, held_out = _split(dialogues, plan)
    before = mean_kl(student.model, teacher, held_out)
    progress.stage(f"KL {before:.5f} per answer token on {len(held_out)} dialogues held out")
    optimizer = torch.optim.Adam(
        [{"params": p, "peak": LEARNING_RATES[kind]} for kind, p in student.groups() if p],
        betas=BETAS,
    )
    stream = islice(_batches(train, plan), plan.steps)
    for step, batch in enumerate(progress.track(stream, "repairing", plan.steps)):
        factor = plan.learning_rate * schedule(step, plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]
        total, tokens = _kl(student.model, teacher, batch)
        (total / tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return Repaired(before, mean_kl(student.model, teacher, held_out))


def schedule(step: int, steps: int) -> float:
    """Linear warm-up times cosine decay to zero, as a factor on the peak learning rate."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def mean_kl(student: Any, teacher: Any, dialogues: Sequence[Dialogue]) -> float:
    """KL(teacher || student) per answer token."""
    sums = [_kl(student, teacher, batch) for batch in batches(dialogues)]
    return sum(float(total) for total, _ in sums) / sum(tokens for _, tokens in sums)


def _kl(student: Any, teacher: Any, batch: Sequence[Dialogue]) -> tuple[Tensor, int]:
    """Summed over the answer tokens of a batch, and their number."""
    ids, starts = [d.ids for d in batch], [d.start for d in batch]
    with torch.no_grad():
        expected = logits_at_answers(teacher, ids, starts).log_softmax(-1)
    found = logits_at_answers(student, ids, starts).log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(), len(expected)


def _split(
    dialogues: Sequence[Dialogue], plan: RepairPlan
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Training dialogues and those held out, at most a quarter of all."""
    if len(dialogues) < LEAST_DIALOGUES:
        raise InvalidRequest(
            f"repair needs at least {LEAST_DIALOGUES} dialogues, {len(dialogues)} are given"
        )
    shuffled = random.Random(f"{plan.seed}/split").sample(dialogues, len(dialogues))
    held_out = min(plan.held_out, len(dialogues) // 4)
    return shuffled[held_out:], shuffled[:held_out]


def _batches(dialogues: Sequence[Dialogue], plan: RepairPlan) -> Iterator[list[Dialogue]]:
    """Batches of similar length without end; epoch k depends on the seed and k alone."""
    epoch = 0
    while True:
        rng = random.Random(f"{plan.seed}/{epoch}")
        # equal lengths fall into different batches in every epoch
        shuffled = rng.sample(dialogues, len(dialogues))
        found = list(batches(shuffled, plan.batch_tokens))
        rng.shuffle(found)
        yield from found
        epoch += 1
