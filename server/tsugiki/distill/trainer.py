"""The training loop: batches, learning rate, accumulation, a log, checkpoints that a run resumes.

Owns: the order of things. Does not know: what is trained (ParameterGroup) or why (Objective).
A run depends on its plan and its batches alone: resumed, it ends in the same bits.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from tsugiki.compress.progress import Progress
from tsugiki.distill.batches import Batch, from_step
from tsugiki.distill.optimizer import Optimizer, ParameterGroup
from tsugiki.distill.training_state import SavedRun, StateFile


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over the answer tokens of some dialogues."""

    total: Tensor  # [], what is minimised
    parts: dict[str, float]  # by name, in nats
    tokens: int


Objective = Callable[[Batch], Losses]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long and how fast."""

    steps: int
    accumulate: int = 1  # passes of one step
    warmup: float = 0.1  # share of the steps
    clip: float | None = 1.0  # norm of all gradients
    betas: tuple[float, float] = (0.9, 0.95)
    decay: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a run, beside what was trained."""

    log: Path | None = None  # JSONL, one line a step
    state: StateFile | None = None
    every: int = 50  # steps between two checkpoints; 0: none


def train(
    groups: Sequence[ParameterGroup],
    objective: Objective,
    batches: Iterator[Batch],
    plan: TrainingPlan,
    progress: Progress,
    record: Record,
) -> None:
    """Train the parameters in place, from the last checkpoint on where there is one. `batches` are
    those of a run from its beginning.

    Raises:
        ConfigError: a checkpoint of another run.
    """
    optimizer = Optimizer(groups, plan.betas, plan.clip)
    done = _resume(optimizer, record, progress)
    passes = from_step(batches, done, plan.accumulate)
    with _Log(record.log, keep=done) as log:
        for step in progress.track(range(done, plan.steps), "training", plan.steps - done):
            started = time.monotonic()
            factor = schedule(step, plan)
            line = {"step": step + 1, **_step(optimizer, objective, next(passes), factor)}
            line |= {"factor": factor, "seconds": time.monotonic() - started}
            log.write(line)
            if _shown(step, plan.steps):
                progress.note(_sentence(line, plan.steps))
            _checkpoint(optimizer, record, step + 1, plan.steps)


def schedule(step: int, plan: TrainingPlan) -> float:
    """Linear warm-up, then decay to zero: a factor on the peak learning rate."""
    warm = round(plan.warmup * plan.steps)
    if step < warm:
        return (step + 1) / warm
    decayed = (step - warm) / max(1, plan.steps - warm)
    return 1 - decayed if plan.decay == "linear" else 0.5 * (1 + math.cos(math.pi * decayed))


@torch.no_grad()
def mean_losses(objective: Objective, batches: Iterable[Batch]) -> dict[str, float]:
    """Each part of the loss per answer token."""
    found = [objective(batch) for batch in batches]
    tokens = sum(losses.tokens for losses in found)
    return {name: sum(f.parts[name] for f in found) / tokens for name in found[0].parts}


def _step(
    optimizer: Optimizer, objective: Objective, passes: Sequence[Batch], factor: float
) -> dict[str, Any]:
    """One update. However it is divided into passes, each answer token weighs the same."""
    tokens = sum(batch.answer_tokens for batch in passes)
    parts: dict[str, float] = {}
    for batch in passes:
        losses = objective(batch)
        (losses.total / tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.collect()
        for name, value in losses.parts.items():
            parts[name] = parts.get(name, 0.0) + value / tokens
    optimizer.step(factor)
    return {**parts, "answer_tokens": tokens, "tokens": sum(batch.tokens for batch in passes)}


def _resume(optimizer: Optimizer, record: Record, progress: Progress) -> int:
    saved = None if record.state is None else record.state.load()
    if saved is None:
        return 0
    progress.stage(f"going on after step {saved.step}")
    optimizer.load(saved.tensors)
    return saved.step


def _checkpoint(optimizer: Optimizer, record: Record, done: int, steps: int) -> None:
    if record.state is not None and record.every and (done % record.every == 0 or done == steps):
        record.state.save(SavedRun(done, optimizer.state()))


def _shown(step: int, steps: int) -> bool:
    return (step + 1) % max(1, steps // 10) == 0 or step == 0


def _sentence(line: dict[str, Any], steps: int) -> str:
    skipped = ("step", "factor", "seconds", "tokens", "answer_tokens")
    parts = ", ".join(f"{name} {line[name]:.4f}" for name in line if name not in skipped)
    return f"step {line['step']}/{steps}: {parts}; {line['seconds']:.1f} s"


class _Log:
    """JSON lines of the steps, less those that a resumed run makes again."""

    def __init__(self, path: Path | None, keep: int) -> None:
        self._path, self._keep = path, keep
        self._file: IO[str] | None = None

    def __enter__(self) -> "_Log":
        if self._path is not None:
            kept = list(_first_lines(self._path, self._keep))
            self._file = self._path.open("w", encoding="utf-8")
            self._file.writelines(kept)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _first_lines(path: Path, count: int) -> Iterator[str]:
    if count and path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from islice(file, count)
