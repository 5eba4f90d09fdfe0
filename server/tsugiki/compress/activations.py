"""What a job takes from calibration: statistics for the codec, and a group size when asked for.

Owns: running the fine-tune once for both. Does not know: packing, sizes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsugiki.codecs import CODECS, deltadq
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress import group_size
from tsugiki.compress.calibration import Calibration, calibrate
from tsugiki.compress.calibration_file import CalibrationFile
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import CompressJob, OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.compress.survey import Pairs, Survey

AUTO, AUTO_ATTENTION = "auto", "auto-attention"
PROXY_LAYERS = 1  # layers whose attention error is compared; the paper looks at the first ones


@dataclass(frozen=True, slots=True)
class Activations:
    """Statistics by weight name (empty without calibration), and options that follow from them."""

    stats: Mapping[str, ModuleStats]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def collect(
    job: CompressJob, base: OpenedBase, pairs: Pairs, found: Survey, progress: Progress
) -> Activations:
    """Run the fine-tune on the calibration file, if the job names one.

    Raises:
        InvalidRequest: the file is unreadable or malformed. CompressionRefused: no usable inputs.
    """
    if job.calibration is None:
        return Activations({}, {})
    names = [c.name for c in found.changes if c.kind == "linear"]
    file = CalibrationFile.of(job, job.calibration, base)
    result = _run(job, base, pairs, names, file, progress)
    if job.group_size not in (AUTO, AUTO_ATTENTION):
        return Activations(result.stats, {})
    progress.stage(f"choosing the group size ({job.group_size})")
    alpha = int(job.options.get("alpha", deltadq.DEFAULTS["alpha"]))
    sizes = group_size.candidates(alpha, base.architecture.hidden_size)
    if job.group_size == AUTO_ATTENTION:
        best, scores = _by_attention(job, base, pairs, result, sizes)
    else:
        walk = _Deltas(pairs, found)
        best, scores = group_size.best_by_variance(walk, result.stats, alpha, sizes)
    shown = ", ".join(f"{size}: {score:.6g}" for size, score in scores.items())
    return Activations(
        result.stats, {"group_size": best}, (f"group size {best} by {job.group_size} ({shown})",)
    )


def _run(
    job: CompressJob,
    base: OpenedBase,
    pairs: Pairs,
    names: list[str],
    file: CalibrationFile,
    progress: Progress,
) -> Calibration:
    progress.stage("loading the fine-tune for calibration")
    model = load_model(pairs.tuned.path)
    sampled = frozenset(_queries(job, base))
    counted = progress.track(file.to_calibrate(), "calibrating", total=file.calibrating)
    return calibrate(model, counted, [*names, *sampled], sampled)


def _queries(job: CompressJob, base: OpenedBase) -> list[str]:
    """The query weights of the layers that the attention error looks at."""
    layers = min(PROXY_LAYERS, base.architecture.num_layers)
    wanted = layers if job.group_size == AUTO_ATTENTION else 0
    return [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(wanted)]


def _by_attention(
    job: CompressJob, base: OpenedBase, pairs: Pairs, result: Calibration, sizes: list[int]
) -> tuple[int, dict[int, float]]:
    codec = CODECS[job.codec]

    def dropped(name: str, size: int) -> Tensor:
        before, after = pairs.base.tensor(name).float(), pairs.tuned.tensor(name).float()
        options = {**job.options, "group_size": size, "name": name}
        return codec.effective(before, codec.compress(before, after, None, options)).weight

    layers = [
        group_size.AttentionInputs(
            query=query,
            key=(key := query.replace("q_proj", "k_proj")),
            inputs=result.samples[query],
            tuned_query=pairs.tuned.tensor(query).float(),
            tuned_key=pairs.tuned.tensor(key).float(),
            head_dim=base.architecture.head_dim,
        )
        for query in _queries(job, base)
    ]
    return group_size.best_by_attention(layers, sizes, dropped)


@dataclass(frozen=True, slots=True)
class _Deltas:
    """Walks the changed linears."""

    pairs: Pairs
    found: Survey

    def __call__(self) -> Iterator[tuple[str, Tensor]]:
        for change in self.found.changes:
            if change.kind == "linear":
                pair = self.pairs.read(change)
                yield change.name, pair.tuned - pair.base
