"""`compress-base sketch` from a directory to a directory: every linear of the layers is sketched.

Owns: the walk over layers, what the new base says of itself, the report. Does not know: how a
linear is sketched (sketch.py). Embeddings, lm_head, norms and biases stay as they are.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.checkpoint_writer import new_directory, write_config, write_tensors
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import (
    CalibrationText,
    Written,
    copy_text_side,
    layer_weights,
    open_walk,
)
from tsugiki.compress_base.layers import LayerWalk
from tsugiki.compress_base.sensitivity import DAMPING, indifferent, sensitivity
from tsugiki.compress_base.sketch import POWER, Sketched, sketch_linear
from tsugiki.errors import CompressionRefused
from tsugiki.model.device import CPU
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.sketched import CODEBOOKS, INDEX, KEY, SketchSettings
from tsugiki_kernels.codebooks import looked_up


@dataclass(frozen=True, slots=True)
class SketchBaseJob:
    """One call of `tsugiki compress-base sketch`."""

    base: Path
    out: Path
    settings: SketchSettings
    calibration: Path | None = None
    sequences: int = 64
    sequence_tokens: int = 512
    damping: float = DAMPING
    power: float = POWER
    cache_dir: Path | None = None
    device: torch.device = CPU


@dataclass(slots=True)
class SketchReport(Written):
    """What was written. Bytes and bits are those of the sketched linears, codebooks included."""

    linears: int = 0
    codebook_bytes: int = 0

    def add(self, found: Sketched) -> None:
        """Count one linear."""
        books = found.weight.codebooks.nbytes
        self.linears += 1
        self.weights += found.weight.shape[0] * found.weight.shape[1]
        self.nbytes += found.weight.index.codes.nbytes + books
        self.codebook_bytes += books
        self.error += found.error
        self.norm += found.norm


def sketch_base(job: SketchBaseJob, progress: Progress) -> SketchReport:
    """Write the sketched base, whole or not at all.

    Raises:
        UnsupportedModel: the base. CompressionRefused: it is sketched already, or a linear's shape
            does not allow it. InvalidRequest: the calibration file. ConfigError: `out` exists.
    """
    started = time.monotonic()
    base = open_base(job.base)
    if base.checkpoint.form is not None:
        raise CompressionRefused(f"{job.base} is compressed already; start from the original")
    progress.stage("hashing the base")
    fingerprint = base_fingerprint(base.checkpoint, job.cache_dir)
    report = SketchReport()
    with new_directory(job.out) as directory:
        walk = None
        if job.calibration is not None:
            text = CalibrationText(job.calibration, job.sequences, job.sequence_tokens)
            walk = open_walk(base, text, progress, job.device)
        write_tensors(directory, _tensors(job, base, walk, report, progress))
        write_config(directory, _config(job, base, fingerprint))
        copy_text_side(job.base, directory)
    report.seconds = time.monotonic() - started
    return report


def _tensors(
    job: SketchBaseJob,
    base: OpenedBase,
    walk: LayerWalk | None,
    report: SketchReport,
    progress: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the new base, one linear at a time."""
    layers = range(base.architecture.num_layers)
    for layer in progress.track(layers, "sketching layers", total=len(layers)):
        yield from _layer(job, base, layer, walk, report)
    sketched = {name for layer in layers for name in layer_weights(base, layer)}
    for name in base.checkpoint.names():
        if name not in sketched:
            yield name, base.checkpoint.tensor(name)


def _layer(
    job: SketchBaseJob, base: OpenedBase, layer: int, walk: LayerWalk | None, report: SketchReport
) -> Iterator[tuple[str, Tensor]]:
    grams = {} if walk is None else walk.grams(layer)
    factors = {id(gram): sensitivity(gram, job.damping) for gram in grams.values()}
    for name in layer_weights(base, layer):
        weight = base.checkpoint.tensor(name).float()
        below = name.removeprefix(f"model.layers.{layer}.")
        costs = factors[id(grams[below])] if grams else indifferent(weight.shape[1], job.device)
        found = sketch_linear(weight, costs, job.settings, job.power)
        report.add(found)
        if walk is not None:
            walk.replace(layer, below, looked_up(found.weight.index, found.weight.codebooks))
        yield name + INDEX, found.weight.index.codes
        yield name + CODEBOOKS, found.weight.codebooks
    if walk is not None:
        walk.advance(layer)


def _config(job: SketchBaseJob, base: OpenedBase, fingerprint: str) -> Mapping[str, Any]:
    ours = {"derived_from": fingerprint, KEY: job.settings.stored()}
    return {**base.checkpoint.config, "tsugiki": ours}
