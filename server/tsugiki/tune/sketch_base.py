"""The codebooks of a sketched base itself, trained towards what the original predicts.

The sketch (compress_base/) makes each linear's outputs agree; this makes the model's agree, as
QuIP# (arXiv 2402.04396, section 5) and CALDERA train what stays continuous. The index map is fixed.
Owns: the objective (KL of the original from the sketch on plain text), the new directory. Does not
know: the loop (distill/trainer.py), how a map is found, command lines.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.sketch_cells import canonical
from tsugiki.compress.checkpoint_writer import new_directory, write_config, write_tensors
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.distill.batches import batched, split, stream
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.teacher import LiveTeacher, View
from tsugiki.distill.trainer import Record, TrainingPlan, mean_losses, train
from tsugiki.distill.training_state import StateFile, state_path
from tsugiki.errors import ConfigError
from tsugiki.model.checkpoint import INDEX_FILE
from tsugiki.model.device import CPU
from tsugiki.model.sketched import CODEBOOKS, INDEX
from tsugiki.model.stored_form import CONFIG_KEY
from tsugiki.setting_values import check_parent
from tsugiki.tune.sketch import SketchStudent, make_student

BETAS = (0.9, 0.98)
TUNED = "tuned"  # of config.json's "tsugiki" object


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What the result depends on, beside the text."""

    steps: int
    learning_rate: float = 1e-4
    batch_tokens: int = 2048
    held_out: int = 8  # sequences
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FitJob:
    """A sketched base and where its fitted successor goes."""

    sketched: Path
    original: Path
    out: Path
    cache_dir: Path
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CPU
    checkpoint_every: int = 50  # steps; 0: never

    def __post_init__(self) -> None:
        check_parent("--out", self.out)
        if self.out.exists():
            raise ConfigError(f"--out {self.out} exists already: give another")


@dataclass(frozen=True, slots=True)
class Fitted:
    """KL(original || sketch) per token of the sequences held out."""

    before: float
    after: float


def fit_sketched_base(job: FitJob, plan: FitPlan, ids: Tensor, progress: Progress) -> Fitted:
    """Train on text (int64 [sequences, length]) and write the new base, whole or not at all; an
    interrupted run goes on when it is asked for again.

    Raises:
        ConfigError: not a sketched base, `out` exists, a checkpoint of another run. InvalidRequest:
            too few sequences to hold some out.
    """
    sketched = open_base(job.sketched)
    student = make_student(sketched, job.dtype, value_bits=16)
    student.model.to(job.device)
    objective = _objective(job, student)
    sequences = [Dialogue(tuple(row), 1, False) for row in ids.tolist()]
    training, held_out = split(sequences, plan.held_out, plan.seed)
    tests = list(batched(held_out, plan.batch_tokens))
    before = mean_losses(objective, tests)["kl"]
    progress.stage(f"KL {before:.5f} per token from the original on {len(held_out)} sequences")
    state = StateFile(state_path(job.out), _identity(job, plan, sketched, ids))
    train(
        [student.group(plan.learning_rate)],
        objective,
        stream(training, plan.batch_tokens, plan.seed),
        TrainingPlan(plan.steps, betas=BETAS),
        progress,
        Record(None, state, job.checkpoint_every),
    )
    after = mean_losses(objective, tests)["kl"]
    student.model.to(CPU)
    fitted = Fitted(before, after)
    _write(job, sketched, student, {**asdict(plan), "tokens": ids.numel(), **asdict(fitted)})
    state.remove()
    return fitted


def _objective(job: FitJob, student: SketchStudent) -> NeoObjective:
    original = load_model(job.original, job.dtype, job.device)
    width = original.config.get_text_config().vocab_size
    return NeoObjective(
        student.model, LiveTeacher(original, View(width)), Mixture(1.0, width=width)
    )


def _identity(job: FitJob, plan: FitPlan, sketched: OpenedBase, ids: Tensor) -> dict[str, Any]:
    """All that the course of the run depends on."""
    return {
        **asdict(plan),
        "sketched": sketched.reference(job.cache_dir).fingerprint,
        "original": open_base(job.original).reference(job.cache_dir).fingerprint,
        "data": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
        "dtype": str(job.dtype),
    }


def _write(
    job: FitJob, sketched: OpenedBase, student: SketchStudent, told: Mapping[str, Any]
) -> None:
    """`told`: what config.json says of the training."""
    config = sketched.checkpoint.config
    with new_directory(job.out) as directory:
        write_tensors(directory, _tensors(sketched, student))
        for file in sorted(job.sketched.iterdir()):
            if file.suffix != ".safetensors" and file.name != INDEX_FILE:
                shutil.copyfile(file, directory / file.name)
        ours = {**config[CONFIG_KEY], TUNED: dict(told)}
        write_config(directory, {**config, CONFIG_KEY: ours})


@torch.no_grad()
def _tensors(sketched: OpenedBase, student: SketchStudent) -> Iterator[tuple[str, Tensor]]:
    """All that is stored. Entries may have changed places: maps are renumbered to ascend."""
    for name in sketched.checkpoint.names():
        if name not in student.linears:
            yield name, sketched.checkpoint.tensor(name)
            continue
        line = student.linears[name]
        codes, books = canonical(line.codes.long(), line.codebooks.detach())
        yield name + INDEX, packing.pack(codes.flatten(1).to(torch.uint8), line.index.bits)
        yield name + CODEBOOKS, books
