"""What a job takes from calibration: statistics for the codec, and a group size when asked for.

Owns: running the fine-tune once for both. Does not know: packing, sizes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tsugiki.codecs import CODECS, deltadq
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress import group_size
from tsugiki.compress.budget import SHARED
from tsugiki.compress.calibration import Calibration, calibrate
from tsugiki.compress.calibration_file import CalibrationFile
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import CompressJob, OpenedBase
from tsugiki.compress.packer import CODED
from tsugiki.compress.progress import Progress
from tsugiki.compress.sensitivity import noise_costs, shares
from tsugiki.compress.survey import Pairs, Survey

AUTO, AUTO_ATTENTION = "auto", "auto-attention"
PROXY_LAYERS = 1  # layers whose attention error is compared; the paper looks at the first ones


@dataclass(frozen=True, slots=True)
class Activations:
    """Statistics by weight name (empty without calibration), and options that follow from them."""

    stats: Mapping[str, ModuleStats]
    options: Mapping[str, Any]
    shares: Mapping[str, float] = field(default_factory=dict)  # of bytes, by name; see sensitivity
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
    file = CalibrationFile.of(job, job.calibration, base)
    result, given = _run(job, base, pairs, found, file, progress)
    if job.group_size not in (AUTO, AUTO_ATTENTION):
        return Activations(result.stats, {}, given)
    progress.stage(f"choosing the group size ({job.group_size})")
    alpha = int(job.options.get("alpha", deltadq.DEFAULTS["alpha"]))
    sizes = group_size.candidates(alpha, base.architecture.hidden_size)
    if job.group_size == AUTO_ATTENTION:
        best, scores = _by_attention(job, base, pairs, result, sizes)
    else:
        walk = _Deltas(pairs, found)
        best, scores = group_size.best_by_variance(walk, result.stats, alpha, sizes)
    shown = ", ".join(f"{size}: {score:.6g}" for size, score in scores.items())
    notes = (f"group size {best} by {job.group_size} ({shown})",)
    return Activations(result.stats, {"group_size": best}, given, notes)


def _run(
    job: CompressJob,
    base: OpenedBase,
    pairs: Pairs,
    found: Survey,
    file: CalibrationFile,
    progress: Progress,
) -> tuple[Calibration, Mapping[str, float]]:
    """Statistics, and what share of the bytes each matrix takes; the model is gone afterwards."""
    progress.stage("loading the fine-tune for calibration")
    model = load_model(pairs.tuned.path, device=job.device)
    names = [change.name for change in found.changes if change.kind == "linear"]
    sampled = frozenset(_queries(job, base))
    counted = progress.track(file.to_calibrate(), "calibrating", total=file.calibrating)
    grams = any(CODECS[name].wants_grams for name in job.codecs)
    result = calibrate(model, counted, [*names, *sampled], sampled, grams=grams)
    if not _to_be_shared(job):
        return result, {}
    coded = {change.name: change.numel for change in found.changes if change.kind in CODED}
    again = progress.track(file.to_calibrate(), "weighing matrices", total=file.calibrating)
    return result, shares(noise_costs(model, again, coded, pairs.base_tensor), coded)


def _to_be_shared(job: CompressJob) -> bool:
    """Whether the job leaves open how many bytes a matrix takes."""
    goals = (job.max_bytes, job.target_ratio, job.max_kl)
    sized = any(goal is not None for goal in goals)
    return (
        sized
        and bool(set(SHARED) & set(job.codecs))
        and not {"alpha", "group_size"} & set(job.options)
    )


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
