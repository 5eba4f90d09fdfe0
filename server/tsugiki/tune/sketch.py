"""`tune sketch` from a sketched base and data to a variant that holds codebooks alone.

Owns: the student (a transformers model with sketched linears), the objective, the file. The loop is
distill/trainer.py's, with the paper's AdamW and linear schedule. Does not know: command lines.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tsugiki import __version__
from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Packed
from tsugiki.codecs.coverage import REPORT_KEY, coverage, declared
from tsugiki.codecs.metadata import Header
from tsugiki.codecs.sketch import CODEC, pack
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.distill.batches import Batch, batched, split, stream
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.distill.trainer import Losses, Record, TrainingPlan, mean_losses, train
from tsugiki.distill.training_state import StateFile, state_path
from tsugiki.errors import ConfigError
from tsugiki.model.sketched import SketchSettings
from tsugiki.setting_values import check_parent
from tsugiki.tune.sketched_linear import SketchedLinear


@dataclass(frozen=True, slots=True)
class SketchTunePlan:
    """What the result depends on."""

    training: TrainingPlan
    learning_rate: float = 2e-4
    batch_tokens: int = 1024  # padded tokens of one pass
    held_out: int = 64  # dialogues that are never trained on
    value_bits: int = 8  # of a codebook entry's change in the file
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SketchTuneJob:
    """One call of `tsugiki tune sketch`."""

    base: Path
    data: Path
    out: Path
    cache_dir: Path
    log: Path | None = None
    dtype: torch.dtype = torch.bfloat16
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


@dataclass(frozen=True, slots=True)
class SketchStudent:
    """A model whose linears are looked up, by weight name."""

    model: Any
    linears: Mapping[str, SketchedLinear]

    def group(self, learning_rate: float) -> ParameterGroup:
        """All codebooks."""
        return ParameterGroup(
            {n: line.codebooks for n, line in self.linears.items()}, learning_rate
        )

    def loss(self, batch: Batch) -> Losses:
        """Cross-entropy of the answers."""
        total = F.cross_entropy(batch.logits(self.model), batch.labels, reduction="sum")
        return Losses(total, {"loss": float(total.detach())}, batch.answer_tokens)

    def packed(self, value_bits: int) -> dict[str, Packed]:
        """What training changed; a linear whose change rounds to nothing is left out."""
        found = {
            n: pack(line.change(), line.index, value_bits, n) for n, line in self.linears.items()
        }
        return {name: packed for name, packed in found.items() if CODEC.changes(packed)}


def make_student(
    base: OpenedBase, dtype: torch.dtype, *, checkpointing: bool = False
) -> SketchStudent:
    """The base with its sketched linears open to training, everything else frozen.

    Raises:
        ConfigError: the base is not sketched.
    """
    checkpoint = base.checkpoint
    if not isinstance(checkpoint.form, SketchSettings):
        raise ConfigError(
            f"--base {checkpoint.path} is not sketched; run `tsugiki compress-base sketch` first"
        )
    model = load_model(checkpoint.path, dtype)
    model.requires_grad_(False)
    modules, linears = dict(model.named_modules()), {}
    for name in filter(checkpoint.is_compressed, checkpoint.names()):
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        bias = getattr(modules[parent], leaf).bias
        shape, read = checkpoint.matrix_shape(name), checkpoint.reader(name)
        linears[name] = SketchedLinear(checkpoint.form.weight(name, shape, read), bias)
        setattr(modules[parent], leaf, linears[name])
    if checkpointing:
        with warnings.catch_warnings():  # newer versions have another name for it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return SketchStudent(model.train(), linears)


def tune_sketch(job: SketchTuneJob, plan: SketchTunePlan, progress: Progress) -> Tuned:
    """Train, and write the file whole or not at all; an interrupted run goes on when it is asked
    for again.

    Raises:
        InvalidRequest: the data. UnsupportedModel: the base. ConfigError: a base that is not
            sketched, a checkpoint of another run.
    """
    base = open_base(job.base)
    dialogues = list(read_dialogues(job.data, load_tokenizer(job.base), max_tokens=job.max_tokens))
    training, held_out = split(dialogues, plan.held_out, plan.seed)
    progress.stage("loading the sketched base")
    student = make_student(base, job.dtype, checkpointing=job.gradient_checkpointing)
    tests = list(batched(held_out, plan.batch_tokens))
    before = mean_losses(student.loss, tests)["loss"]
    progress.stage(f"loss {before:.4f} per answer token on {len(held_out)} dialogues held out")
    state = StateFile(job.state, _identity(job, plan, base, dialogues))
    record = Record(job.log, state, job.checkpoint_every)
    batches = stream(training, plan.batch_tokens, plan.seed)
    groups = [student.group(plan.learning_rate)]
    train(groups, student.loss, batches, plan.training, progress, record)
    after = mean_losses(student.loss, tests)["loss"]
    header = _write(job, plan, base, student, {"before": before, "after": after})
    state.remove()
    return Tuned(header, sum(p.codebooks.numel() for p in student.linears.values()), before, after)


def _identity(
    job: SketchTuneJob, plan: SketchTunePlan, base: OpenedBase, dialogues: list[Dialogue]
) -> dict[str, Any]:
    ids = json.dumps([[d.ids, d.start] for d in dialogues]).encode()
    return {
        **asdict(plan),
        "base": base.reference(job.cache_dir).fingerprint,
        "data": hashlib.sha256(ids).hexdigest(),
        "dtype": str(job.dtype),
    }


def _write(
    job: SketchTuneJob,
    plan: SketchTunePlan,
    base: OpenedBase,
    student: SketchStudent,
    losses: Mapping[str, float],
) -> Header:
    modules = student.packed(plan.value_bits)
    changed = sum(packed.shape[0] * packed.shape[1] for packed in modules.values())
    report = {
        "changed_parameters": changed,
        "model_parameters": base.parameters,
        "loss": {name: round(value, 6) for name, value in losses.items()},
        REPORT_KEY: declared(coverage(modules)),
    }
    spec = ArtifactSpec(
        codec=CODEC.name,
        base=base.reference(job.cache_dir),
        role=CODEC.role,
        created_by=f"tsugiki {__version__}",
        provenance={"data": job.data.name, "tuned": asdict(plan)},
        report=report,
    )
    return artifact.write(job.out, spec, modules)
