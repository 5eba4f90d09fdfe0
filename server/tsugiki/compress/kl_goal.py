"""Packing to a divergence: every candidate is written, read back and run as plain transformers.

Owns: how one size is packed and measured for --max-kl, and which codec is taken where that is left
open. Does not know: which sizes are worth trying (kl_search.py), how a size is met (sizing.py).

One model is in memory at a time: the fine-tune leaves its predictions behind, and the candidates
share one model, whose parameters are overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.compress.budget import TooSmall
from tsugiki.compress.calibration_file import MAX_TOKENS, CalibrationFile
from tsugiki.compress.evaluate import Estimate
from tsugiki.compress.hf_model import load_model, model_of, refill
from tsugiki.compress.job import CompressJob, OpenedBase
from tsugiki.compress.kl_search import Attempt, smaller_than, smallest
from tsugiki.compress.packer import Packer, Stored, markers
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import Reconstruction
from tsugiki.compress.reference import Reference
from tsugiki.compress.sizing import Limit, pack_within
from tsugiki.compress.survey import Change, Pairs
from tsugiki.errors import CompressionRefused, InvalidRequest


@dataclass(frozen=True, slots=True)
class Source:
    """What is packed, again and again."""

    packer: Packer
    pairs: Pairs
    changes: Sequence[Change]
    spec: ArtifactSpec


@dataclass(frozen=True, slots=True)
class Packing:
    """The modules of the chosen size, and what is said of the choice."""

    codec: str
    stored: tuple[Stored, ...]
    note: str


def pack_to_kl(
    job: CompressJob, path: Path, base: OpenedBase, sources: Sequence[Source], progress: Progress
) -> Packing:
    """The smallest file within `job.max_kl`, measured on the calibration file at `path`.

    `sources`: the same changes for each codec that may be taken, the likeliest first: a later one
    is searched only where it makes a smaller file than those before it.

    Raises:
        CompressionRefused: no size is close enough. InvalidRequest: nothing to measure on.
    """
    goal = job.max_kl or 0.0
    reference = _reference(job, path, base, progress)
    scales = [_Scale(job, base, source, reference, progress) for source in sources]
    winner, chosen = _best(scales, goal, progress)
    note = _note(chosen.kl, goal, reference.examples, sum(scale.tried for scale in scales))
    return Packing(winner.codec, chosen.content, note)


def _best(
    scales: Sequence["_Scale"], goal: float, progress: Progress
) -> tuple["_Scale", Attempt[tuple[Stored, ...]]]:
    """Where the smallest file that is close enough comes from.

    Raises:
        CompressionRefused: there is none; for the reason of the likeliest.
    """
    best: tuple[_Scale, Attempt[tuple[Stored, ...]]] | None = None
    refusals: list[CompressionRefused] = []
    for scale in scales:
        try:
            if best is None:
                best = scale, smallest(scale.weigh, goal, progress)
            elif better := smaller_than(best[1].ratio, scale.weigh, goal, progress):
                best = scale, better
        except CompressionRefused as error:
            refusals.append(error)
        scale.rest()
    if best is None:
        raise refusals[0]
    return best


def _reference(job: CompressJob, path: Path, base: OpenedBase, progress: Progress) -> Reference:
    dialogues = list(CalibrationFile.of(job, path, base).to_measure())
    if not dialogues:
        raise InvalidRequest(
            f"{path}: no answer of the examples set aside for --max-kl begins within the first "
            f"{MAX_TOKENS} tokens; give shorter prompts"
        )
    progress.stage("loading the fine-tune to compare with")
    return Reference.of(load_model(job.tuned, device=job.device), dialogues, progress)


class _Scale:
    """Packs to a ratio and measures the file."""

    def __init__(
        self,
        job: CompressJob,
        base: OpenedBase,
        source: Source,
        reference: Reference,
        progress: Progress,
    ) -> None:
        self._job = job
        self._base = base
        self._source = source
        self._reference = reference
        self._progress = progress
        self._fingerprint = base.reference(job.cache_dir).fingerprint
        self._model: Any = None
        self.tried = 0

    @property
    def codec(self) -> str:
        """Of the files that are weighed."""
        return self._source.spec.codec

    def rest(self) -> None:
        """Let go of the model: there is room for one."""
        self._model = None

    def weigh(self, ratio: float) -> Attempt[tuple[Stored, ...]] | None:
        """The file of this honest ratio and its KL; None where there is no such file."""
        source = self._source
        limit = Limit(None, ratio)
        try:
            stored = pack_within(
                source.packer, source.pairs, source.changes, limit, source.spec, self._progress
            )
        except TooSmall:
            return None
        stored += markers(source.pairs, stored)
        self.tried += 1
        return Attempt(stored, ratio, self._divergence(stored))

    def _divergence(self, stored: Sequence[Stored]) -> Estimate:
        with TemporaryDirectory(prefix=".tsugiki-", dir=self._job.out.parent) as directory:
            file = Path(directory) / self._job.out.name
            spec = replace(self._source.spec, probe=None)  # so far it only holds the probe's place
            artifact.write(file, spec, {item.packed.name: item.packed for item in stored})
            variant = Reconstruction(self._base, artifact.read(file), self._fingerprint)
        if self._model is None:
            self._model = model_of(variant.config(), variant.tensors(), device=self._job.device)
        else:
            refill(self._model, variant.tensors())
        return self._reference.compare(self._model).kl


def _note(kl: Estimate, goal: float, examples: int, tried: int) -> str:
    return (
        f"KL {kl.value:.5f} [95 %: {kl.low:.5f}, {kl.high:.5f}] nats per answer token on "
        f"{examples} examples that calibration did not see (--max-kl {goal:g}; {tried} sizes tried)"
    )
