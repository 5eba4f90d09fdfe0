"""`compress-base saten` from a directory to a directory: linears and the embedding table as trains
with sparse entries.

Owns: the menus of all matrices, what is kept of an interrupted run, what the new base says of
itself, the report. Does not know: how a matrix is packed or bytes are shared out (codecs/saten_*).
Norms and biases stay as they are.

One matrix is in memory at a time. Decompositions for the menus take most of the time; what they
found is kept beside `out` until the base is whole.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs.base import Packed
from tsugiki.codecs.saten import CODEC
from tsugiki.codecs.saten_budget import Choice, allocate, menu
from tsugiki.codecs.saten_fit import DEFAULTS
from tsugiki.compress.checkpoint_writer import new_directory, write_config, write_tensors
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import Written, copy_text_side, layer_weights
from tsugiki.errors import CompressionRefused, ConfigError
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.saten import KEY, SatenSettings, stored_tensors


@dataclass(frozen=True, slots=True)
class SatenBaseJob:
    """One call of `tsugiki compress-base saten`."""

    base: Path
    out: Path
    bits_per_weight: float  # of all matrices together, everything counted
    options: Mapping[str, Any] = field(default_factory=dict)  # of codec saten, as they are given
    embedding: bool = True  # whether the embedding table is compressed, too
    cache_dir: Path | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """Options of codec saten that are the same for all. Weights that keep most entries want a
        step for each row: with one for 64 rows perplexity explodes at 4 bits."""
        return {"rows_per_step": 1, **self.options}

    @property
    def partial(self) -> Path:
        """Where the menus of an interrupted run are kept."""
        return self.out.with_name(f"{self.out.name}.partial")


@dataclass(slots=True)
class SatenReport(Written):
    """What was written."""

    matrices: int = 0

    def add(self, weight: Tensor, packed: Packed) -> None:
        """Count one matrix."""
        stored = CODEC.effective(torch.zeros(weight.shape), packed).weight
        self.matrices += 1
        self.weights += weight.numel()
        self.nbytes += sum(tensor.nbytes for tensor in stored_tensors(packed).values())
        self.error += float((stored - weight).square().sum())
        self.norm += float(weight.square().sum())


def saten_base(job: SatenBaseJob, progress: Progress) -> SatenReport:
    """Write the base, whole or not at all; an interrupted run goes on when it is asked for again.

    Raises:
        UnsupportedModel: the base. CompressionRefused: it is compressed already, or an option.
        ConfigError: `out` exists, no bits, or the menus kept of another run.
    """
    started = time.monotonic()
    if not job.bits_per_weight > 0:
        raise ConfigError(f"--bits-per-weight is {job.bits_per_weight}; it must be above 0")
    base = open_base(job.base)
    if base.checkpoint.form is not None:
        raise CompressionRefused(f"{job.base} is compressed already; start from the original")
    progress.stage("hashing the base")
    fingerprint = base_fingerprint(base.checkpoint, job.cache_dir)
    report = SatenReport()
    with new_directory(job.out) as directory:
        names = _matrices(job, base)
        menus = _menus(job, base, names, fingerprint, progress)
        sizes = {name: base.checkpoint.matrix_shape(name) for name in names}
        weights = sum(rows * columns for rows, columns in sizes.values())
        settings = allocate(menus, job.bits_per_weight * weights / 8)
        write_tensors(directory, _tensors(job, base, settings, report, progress))
        write_config(directory, _config(job, base, fingerprint))
        copy_text_side(job.base, directory)
    shutil.rmtree(job.partial)
    report.seconds = time.monotonic() - started
    return report


def _matrices(job: SatenBaseJob, base: OpenedBase) -> list[str]:
    layers = range(base.architecture.num_layers)
    names = [name for layer in layers for name in layer_weights(base, layer)]
    return [*names, base.layout.embedding] if job.embedding else names


def _menus(
    job: SatenBaseJob, base: OpenedBase, names: list[str], fingerprint: str, progress: Progress
) -> dict[str, list[Choice]]:
    """What each matrix can be; found once, kept line by line."""
    known = _open_partial(job, fingerprint)
    found = {}
    with known.open("a+", encoding="utf-8") as file:
        file.seek(0)
        lines = [line for line in file if line.endswith("\n")]
        found = {name: [Choice(**c) for c in kept] for name, kept in map(json.loads, lines)}
        left = [name for name in names if name not in found]
        for name in progress.track(left, "weighing settings", total=len(left)):
            choices = menu(base.checkpoint.tensor(name).float(), None, job.fixed)
            file.write(json.dumps([name, [asdict(choice) for choice in choices]]) + "\n")
            file.flush()
            found[name] = choices
    return found


def _open_partial(job: SatenBaseJob, fingerprint: str) -> Path:
    """Make or find the menus of finished matrices.

    Raises:
        ConfigError: they are another run's.
    """
    asked = {"base": fingerprint, "options": job.fixed}
    told = job.partial / "run.json"
    job.partial.mkdir(exist_ok=True)
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")) != asked:
        raise ConfigError(
            f"{job.partial} holds menus of a run with other settings: delete it, or give another "
            "--out"
        )
    told.write_text(json.dumps(asked), encoding="utf-8")
    return job.partial / "menus.jsonl"


def _tensors(
    job: SatenBaseJob,
    base: OpenedBase,
    settings: Mapping[str, Choice],
    report: SatenReport,
    progress: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the new base, one matrix at a time."""
    names = base.checkpoint.names()
    for name in progress.track(names, "packing", total=len(names)):
        weight = base.checkpoint.tensor(name)
        if name not in settings:
            yield name, weight
            continue
        options = {**job.fixed, **settings[name].options, "name": name}
        weight = weight.float()
        packed = CODEC.compress(torch.zeros(weight.shape), weight, None, options)
        report.add(weight, packed)
        for suffix, tensor in stored_tensors(packed).items():
            yield name + suffix, tensor


def _config(job: SatenBaseJob, base: OpenedBase, fingerprint: str) -> Mapping[str, Any]:
    asked = {**DEFAULTS, **job.fixed}
    ours = SatenSettings(asked["core_bits"], asked["value_bits"])
    stored = {"derived_from": fingerprint, KEY: ours.stored()}
    return {**base.checkpoint.config, "tsugiki": stored}
