"""`compress-base caldera` from a directory to a directory: every linear of the layers decomposed.

Owns: the walk over layers, what is kept of an interrupted run, what the new base says of itself,
the report. Does not know: how a linear is decomposed (caldera.py). Embeddings, lm_head, norms and
biases stay as they are.

A layer is seen behind the ones already compressed, so they are done in order; what a layer took is
kept beside `out` until the base is whole. Memory: the model, the hidden states of the text, one
layer's Gram matrices.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.codecs.factors import stored
from tsugiki.codecs.low_rank_fit import DAMPING
from tsugiki.compress.checkpoint_writer import new_directory, write_config, write_tensors
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import CalibrationText, copy_text_side, layer_weights, open_walk
from tsugiki.compress_base.caldera import Decomposed, Metric, Settings, decompose
from tsugiki.compress_base.layers import LayerWalk
from tsugiki.errors import CompressionRefused, ConfigError
from tsugiki.model.caldera import CODES, KEY, RESIDUAL, SCALES, CalderaSettings
from tsugiki.model.device import CPU
from tsugiki.model.fingerprint import base_fingerprint

REPORT_FILE = "compression.json"


@dataclass(frozen=True, slots=True)
class CalderaBaseJob:
    """One call of `tsugiki compress-base caldera`."""

    base: Path
    out: Path
    settings: Settings
    calibration: CalibrationText | None = None
    damping: float = DAMPING
    cache_dir: Path | None = None
    device: torch.device = CPU

    @property
    def partial(self) -> Path:
        """Where the layers of an interrupted run are kept."""
        return self.out.with_name(f"{self.out.name}.partial")


@dataclass(frozen=True, slots=True)
class LinearReport:
    """One linear. Errors as in `Decomposed`; bytes are all that is stored for it."""

    name: str
    weights: int
    backbone_bytes: int
    factor_bytes: int
    errors: tuple[float, ...]


@dataclass(slots=True)
class CalderaReport:
    """What was written."""

    model_parameters: int
    other_bytes: int = 0  # of whatever stays as it is
    linears: list[LinearReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def weights(self) -> int:
        """Of all linears."""
        return sum(linear.weights for linear in self.linears)

    @property
    def nbytes(self) -> int:
        """Of all linears."""
        return sum(linear.backbone_bytes + linear.factor_bytes for linear in self.linears)

    @property
    def bits_per_weight(self) -> float:
        """Of the linears, everything counted."""
        return 8 * self.nbytes / self.weights

    @property
    def model_bits(self) -> float:
        """Of the whole model: embeddings and norms as they are stored."""
        return 8 * (self.nbytes + self.other_bytes) / self.model_parameters

    @property
    def error(self) -> float:
        """The root of the mean squared relative error under the inputs, over linears."""
        kept = [min(linear.errors) ** 2 for linear in self.linears]
        return float((sum(kept) / len(kept)) ** 0.5)


def caldera_base(job: CalderaBaseJob, progress: Progress) -> CalderaReport:
    """Write the base, whole or not at all; an interrupted run goes on when it is asked for again.

    Raises:
        UnsupportedModel: the base. CompressionRefused: it is compressed already, or a linear cannot
            be decomposed so. InvalidRequest: the calibration file. ConfigError: `out` exists, or
            the layers kept of another run.
    """
    started = time.monotonic()
    base = open_base(job.base)
    if base.checkpoint.form is not None:
        raise CompressionRefused(f"{job.base} is compressed already; start from the original")
    progress.stage("hashing the base")
    fingerprint = base_fingerprint(base.checkpoint, job.cache_dir)
    report = CalderaReport(base.parameters)
    with new_directory(job.out) as directory:
        _open_partial(job, fingerprint)
        walk = None
        if job.calibration is not None:
            walk = open_walk(base, job.calibration, progress, job.device)
        write_tensors(directory, _tensors(job, base, walk, report, progress))
        write_config(directory, _config(job, base, fingerprint))
        copy_text_side(job.base, directory)
        report.seconds = time.monotonic() - started
        _write_report(directory, report)
    shutil.rmtree(job.partial)
    return report


def _tensors(
    job: CalderaBaseJob,
    base: OpenedBase,
    walk: LayerWalk | None,
    report: CalderaReport,
    progress: Progress,
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the new base, one layer at a time."""
    layers = range(base.architecture.num_layers)
    for layer in progress.track(layers, "decomposing layers", total=len(layers)):
        yield from _layer(job, base, layer, walk, report).items()
    done = {name for layer in layers for name in layer_weights(base, layer)}
    for name in base.checkpoint.names():
        if name not in done:
            tensor = base.checkpoint.tensor(name)
            report.other_bytes += tensor.nbytes
            yield name, tensor


def _layer(
    job: CalderaBaseJob, base: OpenedBase, layer: int, walk: LayerWalk | None, report: CalderaReport
) -> dict[str, Tensor]:
    """The tensors of a layer, as they were kept or decomposed now; the walk goes past it."""
    kept, told = job.partial / f"{layer}.safetensors", job.partial / f"{layer}.json"
    names = layer_weights(base, layer)
    if not told.is_file():
        tensors, lines = _decomposed(job, base, layer, walk)
        save_file(tensors, kept)
        told.write_text(json.dumps([asdict(line) for line in lines]), encoding="utf-8")
    tensors = load_file(kept)
    report.linears += [LinearReport(**line) for line in json.loads(told.read_text())]
    if walk is not None:
        for name in names:
            walk.replace(layer, _below(layer, name), _dense(job, base, name, tensors))
        walk.advance(layer)
    return tensors


def _decomposed(
    job: CalderaBaseJob, base: OpenedBase, layer: int, walk: LayerWalk | None
) -> tuple[dict[str, Tensor], list[LinearReport]]:
    grams = {} if walk is None else walk.grams(layer)
    metrics: dict[int, Metric] = {}
    tensors: dict[str, Tensor] = {}
    lines: list[LinearReport] = []
    for name in layer_weights(base, layer):
        weight = base.checkpoint.tensor(name).float().to(job.device)
        gram = grams.get(_below(layer, name))
        key = weight.shape[1] if gram is None else id(gram)
        if key not in metrics:
            plain = torch.eye(weight.shape[1], device=job.device)
            metrics[key] = Metric(plain if gram is None else gram, job.damping)
        found = decompose(weight, metrics[key], job.settings)
        parts = _stored(found, job.settings.factor_bits)
        tensors |= {name + suffix: tensor for suffix, tensor in parts.items()}
        total = sum(tensor.nbytes for tensor in parts.values())
        own = found.backbone.nbytes
        lines.append(LinearReport(name, weight.numel(), own, total - own, found.errors))
    return tensors, lines


def _stored(found: Decomposed, factor_bits: int) -> dict[str, Tensor]:
    """By the suffix of the name; on the CPU."""
    backbone = found.backbone
    parts = {CODES: backbone.codes, SCALES: backbone.scales}
    if backbone.residual is not None:
        parts[RESIDUAL] = backbone.residual
    if found.factors is not None:
        own = stored(found.factors, factor_bits)
        parts |= {f".{part}": tensor for part, tensor in own.items()}
    return {suffix: part.cpu() for suffix, part in parts.items()}


def _dense(
    job: CalderaBaseJob, base: OpenedBase, name: str, tensors: Mapping[str, Tensor]
) -> Tensor:
    shape = base.checkpoint.matrix_shape(name)
    return _settings(job).dense(name, shape, lambda suffix: tensors[name + suffix])


def _below(layer: int, name: str) -> str:
    return name.removeprefix(f"model.layers.{layer}.")


def _settings(job: CalderaBaseJob) -> CalderaSettings:
    asked = job.settings
    return CalderaSettings(asked.bits, asked.rank, asked.factor_bits)


def _config(job: CalderaBaseJob, base: OpenedBase, fingerprint: str) -> Mapping[str, Any]:
    ours = {"derived_from": fingerprint, KEY: _settings(job).stored()}
    return {**base.checkpoint.config, "tsugiki": ours}


def _open_partial(job: CalderaBaseJob, fingerprint: str) -> None:
    """Make or find the folder of finished layers.

    Raises:
        ConfigError: it is another run's.
    """
    asked = {"base": fingerprint, "damping": job.damping, **asdict(job.settings)}
    asked["calibration"] = None if job.calibration is None else _identity(job.calibration)
    asked["inputs"] = "values as attention averages them"  # layers made otherwise are not mixed in
    told = job.partial / "run.json"
    job.partial.mkdir(exist_ok=True)
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")) != asked:
        raise ConfigError(
            f"{job.partial} holds layers of a run with other settings: delete it, or give another "
            "--out"
        )
    told.write_text(json.dumps(asked), encoding="utf-8")


def _identity(text: CalibrationText) -> dict[str, Any]:
    return {**asdict(text), "path": str(text.path.resolve())}


def _write_report(directory: Path, report: CalderaReport) -> None:
    shown = {
        **asdict(report),
        "bits_per_weight": report.bits_per_weight,
        "model_bits": report.model_bits,
    }
    (directory / REPORT_FILE).write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
