"""`distill` from directories to a variant file: opens teacher, student and data, trains, writes.

Owns: the order in which models are in memory, the checks of what was asked for, what the file says
of itself. Does not know: the loop (trainer.py), the loss (neo.py), the branch (lora_student.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tsugiki import __version__
from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.coverage import REPORT_KEY, coverage, declared
from tsugiki.codecs.metadata import Header
from tsugiki.codecs.peft_adapter import from_peft
from tsugiki.compress.decompress import decompress
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.tokenizer_check import first_difference, load_tokenizer
from tsugiki.distill.batches import batched, dialogues_digest, shared_beginning, split, stream
from tsugiki.distill.divergence import Direction
from tsugiki.distill.lora_student import LoraSettings, LoraStudent, attach
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.teacher import LiveTeacher, Teacher, View
from tsugiki.distill.teacher_cache import TeacherCache
from tsugiki.distill.trainer import Record, TrainingPlan, mean_losses, train
from tsugiki.distill.training_state import StateFile, state_path
from tsugiki.errors import ConfigError, InvalidRequest
from tsugiki.model.device import CPU
from tsugiki.setting_values import check_parent

CACHED_TOP_K = 32


@dataclass(frozen=True, slots=True)
class DistillPlan:
    """What is learned, and how."""

    training: TrainingPlan
    lora: LoraSettings = field(default_factory=LoraSettings)
    learning_rate: float = 2e-4
    alpha: float = 0.5
    direction: Direction = "forward"
    temperature: float = 1.0
    top_k: int | None = None  # None: the whole vocabulary, or 32 from a cache
    batch_tokens: int = 1024  # padded, of one pass, less what all prompts begin with
    held_out: int = 64  # dialogues that are never trained on
    seed: int = 0  # of the branch, of what is held out, of the order of batches

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"--alpha is {self.alpha}; it must be from 0 to 1")
        for flag, value in (
            ("--temperature", self.temperature),
            ("--learning-rate", self.learning_rate),
            ("--steps", self.training.steps),
            ("--batch-tokens", self.batch_tokens),
            ("--accumulate", self.training.accumulate),
        ):
            if not value > 0:
                raise ConfigError(f"{flag} is {value}; it must be above 0")


@dataclass(frozen=True, slots=True)
class DistillJob:
    """One call of `tsugiki distill`."""

    teacher: Path
    student: Path
    data: Path
    out: Path
    cache_dir: Path
    merge: Path | None = None  # a merged checkpoint beside the variant
    adapter: Path | None = None  # the PEFT adapter beside the variant
    teacher_cache: Path | None = None
    log: Path | None = None
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CPU
    max_tokens: int = 512  # of one dialogue
    gradient_checkpointing: bool = False
    checkpoint_every: int = 50  # steps; 0: never

    def __post_init__(self) -> None:
        check_parent("--out", self.out)
        if self.merge is not None:
            check_parent("--merge", self.merge)
            if self.merge.exists():
                raise ConfigError(f"--merge {self.merge} exists already; give a new directory")

    @property
    def state(self) -> Path:
        """Where an interrupted run is kept."""
        return state_path(self.out)


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came out. Losses are per answer token, of the dialogues held out."""

    header: Header
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Opened:
    """Everything but the models."""

    student: OpenedBase
    teacher: OpenedBase
    dialogues: Sequence[Dialogue]
    shared: int  # tokens that all of them begin with, where keys and values can be kept

    @property
    def width(self) -> int:
        """Tokens of the narrower output: what lies beyond is padding of an equal vocabulary."""
        sizes = (self.student.architecture.vocab_size, self.teacher.architecture.vocab_size)
        return min(sizes)


def run_distill(job: DistillJob, plan: DistillPlan, progress: Progress) -> Distilled:
    """Train, and write the file whole or not at all; an interrupted run goes on when it is asked
    for again.

    Raises:
        InvalidRequest: the data, or tokenizers that differ. UnsupportedModel: a directory.
        ConfigError: the plan, or a checkpoint or a teacher cache of another run.
    """
    opened = _open(job)
    identity = _identity(job, plan, opened)
    training, held_out = split(opened.dialogues, plan.held_out, plan.seed)
    teacher = _teacher(job, plan, opened, identity, progress) if plan.alpha else None
    progress.stage("loading the student")
    model = load_model(job.student, job.dtype)
    student = attach(model, plan.lora, plan.seed, checkpointing=job.gradient_checkpointing)
    student.model.to(job.device)  # a branch is drawn on the CPU: the same numbers everywhere
    mixture = Mixture(plan.alpha, plan.direction, plan.temperature, opened.width)
    objective = NeoObjective(student.model, teacher, mixture)
    tests = list(batched(held_out, plan.batch_tokens, opened.shared))
    before = mean_losses(objective, tests)
    state = StateFile(job.state, identity)
    record = Record(job.log, state, job.checkpoint_every)
    groups = [student.group(plan.learning_rate)]
    batches = stream(training, plan.batch_tokens, plan.seed, opened.shared)
    train(groups, objective, batches, plan.training, progress, record)
    after = mean_losses(objective, tests)
    header = _write(job, plan, opened, student, {"before": before, "after": after})
    state.remove()
    if job.merge is not None:
        variant = open_variant(job.out, str(job.student), job.cache_dir)
        decompress(variant, job.merge, torch.float32, progress)
    return Distilled(header, before, after)


def _open(job: DistillJob) -> _Opened:
    tokenizer = load_tokenizer(job.student)
    difference = first_difference(tokenizer, load_tokenizer(job.teacher))
    if difference is not None:
        raise InvalidRequest(
            f"teacher and student must share one tokenizer, but with the student as base: "
            f"{difference}"
        )
    dialogues = list(read_dialogues(job.data, tokenizer, max_tokens=job.max_tokens))
    # keys and values of a shared beginning are what checkpointing would not keep
    shared = 0 if job.gradient_checkpointing else shared_beginning(dialogues)
    return _Opened(open_base(job.student), open_base(job.teacher), dialogues, shared)


def _teacher(
    job: DistillJob,
    plan: DistillPlan,
    opened: _Opened,
    identity: Mapping[str, Any],
    progress: Progress,
) -> Teacher:
    """In memory, or its expectations from the cache: then it has left memory."""
    cached = job.teacher_cache is not None
    top_k = plan.top_k or (CACHED_TOP_K if cached else None)
    width = opened.width
    if top_k is not None and not 0 < top_k < width:
        raise ConfigError(f"--top-k is {top_k}; it must be from 1 to {width - 1}")
    view = View(width, top_k, plan.temperature)

    def load() -> LiveTeacher:
        progress.stage("loading the teacher")
        return LiveTeacher(load_model(job.teacher, job.dtype, job.device), view)

    if job.teacher_cache is None:
        return load()
    about = {"teacher": identity["teacher"], "dtype": identity["dtype"], **asdict(view)}
    cache = TeacherCache(job.teacher_cache, opened.dialogues, about)
    cache.fill(load, opened.shared, progress)
    return cache.open()


def _identity(job: DistillJob, plan: DistillPlan, opened: _Opened) -> dict[str, Any]:
    """All that the course of the run depends on."""
    return {
        **asdict(plan),
        "student": opened.student.reference(job.cache_dir).fingerprint,
        "teacher": opened.teacher.reference(job.cache_dir).fingerprint,
        "data": dialogues_digest(opened.dialogues),
        "dtype": str(job.dtype),
        "teacher_cached": job.teacher_cache is not None,
    }


def _write(
    job: DistillJob,
    plan: DistillPlan,
    opened: _Opened,
    student: LoraStudent,
    losses: Mapping[str, Mapping[str, float]],
) -> Header:
    with _adapter_directory(job) as directory:
        student.save(directory, job.student)
        modules = from_peft(directory)
    found = coverage(modules)
    provenance = {
        **asdict(plan),
        "teacher": opened.teacher.reference(job.cache_dir).fingerprint,
        "data": job.data.name,
        **{when: {k: round(v, 6) for k, v in parts.items()} for when, parts in losses.items()},
    }
    spec = ArtifactSpec(
        codec="lora",
        base=opened.student.reference(job.cache_dir),
        role=CODECS["lora"].role,
        text=None,
        created_by=f"tsugiki {__version__}",
        provenance={"distilled": provenance},
        report={
            "changed_parameters": sum(p.shape[0] * p.shape[1] for p in modules.values()),
            "model_parameters": opened.student.parameters,
            REPORT_KEY: declared(found),
        },
    )
    return artifact.write(job.out, spec, modules)


@contextmanager
def _adapter_directory(job: DistillJob) -> Iterator[Path]:
    if job.adapter is not None:
        yield job.adapter
        return
    with TemporaryDirectory(prefix=".tsugiki-", dir=job.out.parent) as directory:
        yield Path(directory)
