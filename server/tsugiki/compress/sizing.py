"""Packing into a given number of bytes: --max-bytes and --target-ratio.

Owns: the search for options whose file is within a limit, before anything is written.
Does not know: which options a codec trades (budget.py), where changes come from.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Options, Packed
from tsugiki.compress import budget
from tsugiki.compress.packer import Packer, Stored, pack_all
from tsugiki.compress.progress import Progress
from tsugiki.compress.report import BF16_BYTES
from tsugiki.compress.survey import Change, Pairs
from tsugiki.errors import CompressionRefused

UNUSED = 0.04  # of the bytes that are allowed, at most, where the codec has a setting for that
ATTEMPTS = 5  # tensor sizes are exact; the header is only when options are chosen


@dataclass(frozen=True, slots=True)
class Limit:
    """How large the file may be."""

    max_bytes: int | None
    target_ratio: float | None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.max_bytes is not None or self.target_ratio is not None

    def bytes_for(self, parameters: int) -> int:
        """Bytes of a file that changes so many parameters."""
        if self.target_ratio is not None:
            return int(parameters * BF16_BYTES / self.target_ratio)
        return self.max_bytes or 0


@dataclass(frozen=True, slots=True)
class Sized:
    """What a limit is met with: changes whose size is chosen, modules whose size is not."""

    changes: tuple[Change, ...]
    fixed: tuple[Stored, ...]
    examples: Mapping[str, Packed]  # one for each of the changes, names their own
    shares: Mapping[str, float]  # of the usual bytes, for each of them
    beside: int  # bytes of rows that are stored beside the examples

    def templates(self) -> list[budget.Template]:
        """The examples by kind and share."""
        # examples of one kind share their tensors
        kinds = Counter((id(p.tensors), self.shares[n]) for n, p in self.examples.items())
        known = {id(packed.tensors): packed for packed in self.examples.values()}
        return [
            budget.Template(known[k].codec, tuple(known[k].shape), known[k].options, count, share)
            for (k, share), count in kinds.items()
        ]


def pack_within(
    packer: Packer,
    pairs: Pairs,
    changes: Iterable[Change],
    limit: Limit,
    spec: ArtifactSpec,
    progress: Progress,
) -> tuple[Stored, ...]:
    """Pack with the best options whose file is within the limit.

    Raises:
        TooSmall: the codec has no setting that small. CompressionRefused: a module cannot be
            carried.
    """
    sized = _sized(packer, pairs, changes)
    parameters = sum(s.parameters for s in sized.fixed)
    parameters += sum(e.shape[0] * e.shape[1] for e in sized.examples.values())
    allowed = limit.bytes_for(parameters)
    fixed = {item.packed.name: item.packed for item in sized.fixed}
    overhead = sized.beside + artifact.file_bytes(spec, {**fixed, **sized.examples})
    overhead -= sum(packed.nbytes for packed in sized.examples.values())
    for _ in range(ATTEMPTS):
        options = budget.choose(
            spec.codec,
            sized.templates(),
            allowed - overhead,
            packer.asked,
            least=int((1 - UNUSED) * allowed) - overhead,
        )
        text = f"packing with {describe(options)}"
        changes = progress.track(sized.changes, text)
        stored = (*sized.fixed, *pack_all(packer.with_options(options), pairs, changes))
        size = artifact.file_bytes(spec, {item.packed.name: item.packed for item in stored})
        if size <= allowed:
            return stored
        overhead += size - allowed
    raise CompressionRefused(f"no setting of {spec.codec} was found within {allowed:,} bytes")


def _sized(packer: Packer, pairs: Pairs, changes: Iterable[Change]) -> Sized:
    """Pack what has no choice, and one example of every kind that has."""
    chosen: list[Change] = []
    unchosen: list[Change] = []
    for change in changes:
        (chosen if packer.has_choice(change) else unchosen).append(change)
    kinds: dict[Any, Packed] = {}
    examples: dict[str, Packed] = {}
    beside = 0
    for change in chosen:
        kind = packer.kind(change)
        if kind not in kinds:
            first, *rows = packer.pack(pairs.read(change))
            kinds[kind] = first.packed
            beside += sum(item.packed.nbytes for item in rows)
        examples[change.name] = replace(kinds[kind], name=change.name)
    shares = {change.name: packer.share(change) for change in chosen}
    return Sized(tuple(chosen), pack_all(packer, pairs, unchosen), examples, shares, beside)


def describe(options: Options) -> str:
    """Options for people: "alpha 16 bits 1"."""
    return " ".join(f"{key} {value}" for key, value in options.items())
