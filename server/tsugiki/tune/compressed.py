"""From a compressed base and data to a variant that holds what its form lets a variant have.

Owns: the objective (cross-entropy of the answers), the run, the file. The loop is
distill/trainer.py's, with AdamW and a linear schedule. Does not know: any form, command lines.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki import __version__
from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Codec, Packed
from tsugiki.codecs.coverage import REPORT_KEY, coverage, declared
from tsugiki.codecs.metadata import Header
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.distill.batches import Batch, batched, split, stream
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.distill.trainer import Losses, Record, TrainingPlan, mean_losses, train
from tsugiki.distill.training_state import StateFile, state_path
from tsugiki.model.checkpoint import Checkpoint
from tsugiki.model.device import CPU
from tsugiki.setting_values import check_parent

Linear = TypeVar("Linear", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What the result depends on, whatever the form."""

    training: TrainingPlan
    learning_rate: float = 2e-4
    batch_tokens: int = 1024  # padded tokens of one pass
    held_out: int = 64  # dialogues that are never trained on
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TuneJob:
    """One call of `tsugiki tune`."""

    base: Path
    data: Path
    out: Path
    cache_dir: Path
    log: Path | None = None
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CPU
    max_tokens: int = 512  # of one dialogue
    gradient_checkpointing: bool = False
    checkpoint_every: int = 50  # steps; 0: never

    def __post_init__(self) -> None:
        check_parent("--out", self.out)

    @property
    def state(self) -> Path:
        """Where an interrupted run is kept."""
        return state_path(self.out)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came out. Losses are per answer token, of the dialogues held out."""

    header: Header
    trained_parameters: int
    before: float
    after: float


class Student(Protocol):
    """A transformers model in which only what a variant stores is trained."""

    @property
    def model(self) -> Any:
        """In training mode."""

    def group(self, learning_rate: float) -> ParameterGroup:
        """Everything that is trained."""

    def packed(self) -> dict[str, Packed]:
        """The modules of the file."""


def tune(
    job: TuneJob,
    plan: TunePlan,
    codec: Codec,
    make_student: Callable[[OpenedBase], Student],
    progress: Progress,
) -> Tuned:
    """Train, and write the file whole or not at all; an interrupted run goes on when it is asked
    for again.

    Raises:
        InvalidRequest: the data. UnsupportedModel: the base. ConfigError: a checkpoint of another
            run; see `make_student`.
    """
    base = open_base(job.base)
    dialogues = list(read_dialogues(job.data, load_tokenizer(job.base), max_tokens=job.max_tokens))
    training, held_out = split(dialogues, plan.held_out, plan.seed)
    progress.stage("loading the compressed base")
    student = make_student(base)
    student.model.to(job.device)
    if job.gradient_checkpointing:
        _forget_activations(student.model)

    def loss(batch: Batch) -> Losses:
        logits = batch.logits(student.model)
        total = F.cross_entropy(logits, batch.labels.to(logits.device), reduction="sum")
        return Losses(total, {"loss": float(total.detach())}, batch.answer_tokens)

    tests = list(batched(held_out, plan.batch_tokens))
    before = mean_losses(loss, tests)["loss"]
    progress.stage(f"loss {before:.4f} per answer token on {len(held_out)} dialogues held out")
    state = StateFile(job.state, _identity(job, plan, base, dialogues))
    record = Record(job.log, state, job.checkpoint_every)
    batches = stream(training, plan.batch_tokens, plan.seed)
    group = student.group(plan.learning_rate)
    train([group], loss, batches, plan.training, progress, record)
    after = mean_losses(loss, tests)["loss"]
    spec = _spec(job, plan, codec, base)
    losses = {"before": before, "after": after}
    student.model.to(CPU)  # packing is the CPU's, whatever trained
    header = _write(job, spec, base, student.packed(), losses)
    state.remove()
    return Tuned(header, sum(p.numel() for p in group.parameters.values()), before, after)


def replaced_linears(
    checkpoint: Checkpoint, dtype: torch.dtype, make: Callable[[str, Tensor | None], Linear]
) -> tuple[Any, dict[str, Linear]]:
    """A compressed base as a transformers model, frozen, its compressed linears replaced by
    `make(name, bias)`; and these, by weight name."""
    model = load_model(checkpoint.path, dtype)
    model.requires_grad_(False)
    modules, linears = dict(model.named_modules()), {}
    for name in filter(checkpoint.is_compressed, checkpoint.names()):
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        linears[name] = make(name, getattr(modules[parent], leaf).bias)
        setattr(modules[parent], leaf, linears[name])
    return model.train(), linears


def _forget_activations(model: Any) -> None:
    with warnings.catch_warnings():  # newer versions have another name for it
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _identity(
    job: TuneJob, plan: TunePlan, base: OpenedBase, dialogues: list[Dialogue]
) -> dict[str, Any]:
    ids = json.dumps([[d.ids, d.start] for d in dialogues]).encode()
    return {
        **asdict(plan),
        "base": base.reference(job.cache_dir).fingerprint,
        "data": hashlib.sha256(ids).hexdigest(),
        "dtype": str(job.dtype),
    }


def _spec(job: TuneJob, plan: TunePlan, codec: Codec, base: OpenedBase) -> ArtifactSpec:
    return ArtifactSpec(
        codec=codec.name,
        base=base.reference(job.cache_dir),
        role=codec.role,
        created_by=f"tsugiki {__version__}",
        provenance={"data": job.data.name, "tuned": asdict(plan)},
    )


def _write(
    job: TuneJob,
    spec: ArtifactSpec,
    base: OpenedBase,
    modules: Mapping[str, Packed],
    losses: Mapping[str, float],
) -> Header:
    report = {
        "changed_parameters": sum(p.shape[0] * p.shape[1] for p in modules.values()),
        "model_parameters": base.parameters,
        "loss": {name: round(value, 6) for name, value in losses.items()},
        REPORT_KEY: declared(coverage(modules)),
    }
    return artifact.write(job.out, replace(spec, report=report), modules)
