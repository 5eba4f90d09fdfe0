"""`repair` from files to a file: opens variant, teacher and data, and writes the repaired variant.

Owns: what the new file says of itself. Does not know: the loop (repair.py), the model (student.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tsugiki import __version__
from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.metadata import Header
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_fine_tune
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.tokenizer_check import has_tokenizer, load_tokenizer
from tsugiki.distill.batches import dialogues_digest
from tsugiki.distill.trainer import Record
from tsugiki.distill.training_state import StateFile, state_path
from tsugiki.model.device import CPU
from tsugiki.tune.repair import Repaired, RepairPlan, repair
from tsugiki.tune.student import make_student

# measured on the compressed change as it was, which is no longer what the file holds
STALE = ("relative_error", "gain")


@dataclass(frozen=True, slots=True)
class RepairJob:
    """One call of `tsugiki repair`."""

    file: Path
    base: str
    teacher: Path  # the uncompressed fine-tune
    data: Path
    out: Path
    cache_dir: Path
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = CPU
    max_tokens: int = 512  # of one dialogue
    log: Path | None = None
    checkpoint_every: int = 50  # steps; 0: never

    @property
    def state(self) -> Path:
        """Where an interrupted run is kept."""
        return state_path(self.out)


def run_repair(job: RepairJob, plan: RepairPlan, progress: Progress) -> tuple[Repaired, Header]:
    """Train, and write the file whole or not at all; an interrupted run goes on when it is asked
    for again.

    Raises:
        CorruptArtifact, InvalidArtifact, WrongBase: the variant file. InvalidRequest: the data.
        UnsupportedModel: the teacher. Unsupported: nothing in the file can be trained in place.
        ConfigError: a checkpoint of another run.
    """
    progress.stage("loading the variant and its fine-tune")
    variant = open_variant(job.file, job.base, job.cache_dir)
    path = variant.base.checkpoint.path
    tokenizer = load_tokenizer(job.teacher if has_tokenizer(job.teacher) else path)
    dialogues = list(read_dialogues(job.data, tokenizer, max_tokens=job.max_tokens))
    student = make_student(variant, job.dtype)
    student.model.to(job.device)
    teacher = load_fine_tune(job.teacher, path, job.dtype, job.device)
    state = StateFile(job.state, _identity(job, plan, variant.header, dialogues))
    record = Record(job.log, state, job.checkpoint_every)
    result = repair(student, teacher, dialogues, plan, progress, record)
    base = {name: variant.base.checkpoint.tensor(name) for name in student.norms}
    student.model.to(CPU)  # packing is the CPU's, whatever trained
    modules = student.packed(variant.modules, base)
    header = artifact.write(job.out, _spec(variant.header, job, plan, result), modules)
    state.remove()
    return result, header


def _identity(
    job: RepairJob, plan: RepairPlan, header: Header, dialogues: Sequence[Dialogue]
) -> dict[str, Any]:
    """All that the course of the run depends on; the fine-tune by where it is."""
    return {
        **asdict(plan),
        "from": header.digest,
        "teacher": str(job.teacher.resolve()),
        "data": dialogues_digest(dialogues),
        "dtype": str(job.dtype),
    }


def _spec(header: Header, job: RepairJob, plan: RepairPlan, result: Repaired) -> ArtifactSpec:
    """As the file was, without its probe, whose answer may be another now."""
    repaired = {
        **asdict(plan),
        "data": job.data.name,
        "from": header.digest,
        "kl_before": round(result.kl_before, 6),
        "kl_after": round(result.kl_after, 6),
    }
    return ArtifactSpec(
        codec=header.codec,
        base=header.base,
        role=CODECS[header.codec].role,
        text=header.text,
        created_by=f"tsugiki {__version__}",
        provenance={**header.provenance, "repaired": repaired},
        report={key: value for key, value in header.report.items() if key not in STALE},
    )
