"""From a base and a fine-tune to a variant file: the walk that `tsugiki compress` makes.

Owns: the order of the stages and the report. Does not know: how a codec packs (codecs/), what may
differ (survey.py, config_check.py, text_side.py), how a size is met (sizing.py).

Memory stays that of one pair of tensors and of what is stored, whatever the size of the model.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsugiki import __version__
from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Packed
from tsugiki.codecs.coverage import REPORT_KEY, coverage, declared
from tsugiki.codecs.metadata import Header
from tsugiki.compress.activations import Activations, collect
from tsugiki.compress.adapter import adapter_modules
from tsugiki.compress.allocation import MENUS, pack_allocated
from tsugiki.compress.job import (
    CompressJob,
    FullFineTune,
    OpenedBase,
    is_adapter,
    open_base,
    open_full,
)
from tsugiki.compress.kl_goal import Source, pack_to_kl
from tsugiki.compress.packer import DENSE, FLOAT16, INT8, Packer, Stored, markers, pack_all
from tsugiki.compress.probe import (
    Probe,
    Prompts,
    candidate_prompts,
    choose_probe,
    longest_probe,
    note,
    tokens_wanted,
)
from tsugiki.compress.progress import Progress
from tsugiki.compress.report import Deviation, Report, file_paper_ratio, ratio, sections_of
from tsugiki.compress.sizing import Limit, pack_within
from tsugiki.compress.survey import Change, survey
from tsugiki.errors import CompressionRefused

# Stands for the report of a file that is not packed yet: no report is longer than this one.
LONGEST_REPORT = {
    "changed_parameters": 10**12,
    "model_parameters": 10**12,
    "relative_error": 1000.0001,
    "gain": 1000.0001,
    REPORT_KEY: {"modules": 10**6, "parameters": 10**12},
}


@dataclass(frozen=True, slots=True)
class Content:
    """Everything of a variant file but the name of its base."""

    codec: str
    stored: tuple[Stored, ...]
    text: dict[str, Any] | None
    model_parameters: int
    notes: tuple[str, ...] = ()


def compress(job: CompressJob, progress: Progress) -> Report:
    """Carry out a job: read, refuse or pack, write the file whole or not at all, report.

    Raises:
        CompressionRefused: what the fine-tune changes cannot be carried, with the complete list; or
            the size asked for cannot be met.
        UnsupportedModel: a directory that is no model of a supported family.
        ConfigError, InvalidRequest: the job's own options and files.
    """
    started = time.monotonic()
    base = open_base(job.base)
    tokens = tokens_wanted(job, base)
    prompts = candidate_prompts(job, base, tokens)
    if is_adapter(job.tuned):
        content = _adapter(job, base)
    else:
        content = _full(job, base, longest_probe(prompts, tokens), progress)
    modules = {item.packed.name: item.packed for item in content.stored}
    spec = replace(_spec(job, content.codec, base, content.text), report=_kept_report(content))
    if prompts:
        probe = _probe(job, spec, modules, prompts, tokens, progress)
        spec = replace(spec, probe=None if probe is None else probe.stored())
        content = replace(content, notes=(*content.notes, note(probe, len(prompts))))
    progress.stage(f"writing {job.out}")
    header = artifact.write(job.out, spec, modules)
    return _report(job, header, content, time.monotonic() - started)


def _probe(
    job: CompressJob,
    spec: ArtifactSpec,
    modules: Mapping[str, Packed],
    prompts: Prompts,
    tokens: int,
    progress: Progress,
) -> Probe | None:
    """Chosen on the file without a probe, read back as a server would."""
    with TemporaryDirectory(prefix=".tsugiki-", dir=job.out.parent) as directory:
        file = Path(directory) / job.out.name
        header = artifact.write(file, spec, modules)
        return choose_probe(job, file, header, prompts, tokens, progress)


def _full(
    job: CompressJob, base: OpenedBase, probe: Mapping[str, Any] | None, progress: Progress
) -> Content:
    """`probe` is one that is at least as long as the one to be stored, None when there is none."""
    source = open_full(base, job.tuned)
    names = source.pairs.names()
    found = survey(source.pairs, progress.track(names, "comparing tensors"))
    if not found.changes:
        raise CompressionRefused(
            f"no tensor of {job.tuned} differs from {job.base}: check that --base and --tuned name "
            "two different models"
        )
    activations = collect(job, base, source.pairs, found, progress)
    sources = [
        _source(job, codec, base, source, found.changes, activations, probe) for codec in job.codecs
    ]
    limit, first, notes = Limit(job.max_bytes, job.target_ratio), sources[0], activations.notes
    codec, changes = first.spec.codec, found.changes
    if job.max_kl is not None and job.calibration is not None:
        packing = pack_to_kl(job, job.calibration, base, sources, progress)
        codec, stored, notes = packing.codec, packing.stored, (*notes, packing.note)
    elif limit.given:
        pack = pack_allocated if codec in MENUS else pack_within
        stored = pack(first.packer, source.pairs, changes, limit, first.spec, progress)
    else:
        counted = progress.track(changes, f"packing with {job.codec}")
        stored = pack_all(first.packer, source.pairs, counted)
    stored += markers(source.pairs, stored)
    return Content(codec, stored, source.text, found.model_parameters, notes)


def _source(
    job: CompressJob,
    codec: str,
    base: OpenedBase,
    tuned: FullFineTune,
    changes: Sequence[Change],
    activations: Activations,
    probe: Mapping[str, Any] | None,
) -> Source:
    """The changes as one codec would carry them."""
    options = {**job.options, **activations.options}
    sized = job.max_kl is not None or Limit(job.max_bytes, job.target_ratio).given
    vectors = INT8 if sized else FLOAT16
    stats, given = activations.stats, activations.shares
    packer = Packer(CODECS[codec], options, base.layout, stats, vectors, given)
    spec = replace(_spec(job, codec, base, tuned.text), report=LONGEST_REPORT, probe=probe)
    return Source(packer, tuned.pairs, changes, spec)


def _adapter(job: CompressJob, base: OpenedBase) -> Content:
    """A PEFT adapter is stored as it is: nothing is lost and nothing measured."""
    if job.codec != "lora":
        raise CompressionRefused(
            f"{job.tuned} is a PEFT adapter, which only codec lora carries; for {job.codec} "
            "merge it into a checkpoint first (merge_and_unload)"
        )
    chosen = (job.max_bytes, job.target_ratio, job.max_kl, job.calibration, job.options or None)
    if any(value is not None for value in chosen):
        raise CompressionRefused(
            "a PEFT adapter is stored as it is: it has no size, rank or calibration to choose"
        )
    source = adapter_modules(base, job.tuned)
    exact = [Stored(p, p.shape[0] * p.shape[1], Deviation()) for p in source.modules.values()]
    return Content(job.codec, tuple(exact), source.text, base.parameters)


def _spec(
    job: CompressJob, codec: str, base: OpenedBase, text: Mapping[str, Any] | None
) -> ArtifactSpec:
    return ArtifactSpec(
        codec=codec,
        base=base.reference(job.cache_dir),
        role=CODECS[codec].role,
        text=text,
        created_by=f"tsugiki {__version__}",
        provenance={"fine_tune": job.tuned.resolve().name},
    )


def _kept_report(content: Content) -> dict[str, Any]:
    """What the file says of itself; sizes and ratios follow from the file."""
    total = _total(content)
    return {
        "changed_parameters": sum(item.parameters for item in content.stored),
        "model_parameters": content.model_parameters,
        "relative_error": round(total.relative_error, 4),
        "gain": round(total.gain, 4),
        REPORT_KEY: _declared(content),
    }


def _declared(content: Content) -> dict[str, int]:
    """What really changes, for those who verify the file.

    Raises:
        CompressionRefused: nothing does.
    """
    found = coverage({item.packed.name: item.packed for item in content.stored})
    if not found.parameters:
        raise CompressionRefused(
            f"all {found.modules_declared} tensors to be stored are zero: the variant would serve "
            "the base; train it further, or give it more bytes"
        )
    return declared(found)


def _total(content: Content) -> Deviation:
    """Over everything that the variant's own codec carries."""
    coded = [item.deviation for item in content.stored if item.packed.codec != DENSE]
    return reduce(Deviation.__add__, coded, Deviation())


def _report(job: CompressJob, header: Header, content: Content, seconds: float) -> Report:
    total = _total(content)
    changed = sum(item.parameters for item in content.stored)
    return Report(
        path=str(job.out),
        digest=header.digest,
        codec=header.codec,
        options=dict(header.options),
        file_bytes=header.file_bytes,
        sections=sections_of(header),
        changed_parameters=changed,
        model_parameters=content.model_parameters,
        honest_ratio=ratio(changed, header.file_bytes),
        whole_model_ratio=ratio(content.model_parameters, header.file_bytes),
        paper_ratio=file_paper_ratio(header),
        relative_error=total.relative_error,
        gain=total.gain,
        seconds=seconds,
        modules=tuple(item.report() for item in content.stored),
        notes=content.notes,
    )
