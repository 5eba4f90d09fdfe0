"""Options that make a variant file small enough: --target-ratio and --max-bytes.

Owns: which settings of a codec trade size for quality, and in which order to try them.
Does not know: weights, files. Sizes are exact: `Codec.parts` says what a module stores before it is
packed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Options, Packed
from tsugiki.errors import CompressionRefused

# Squared error of the best k-bit uniform quantizer of a Gaussian, gain matched, relative to its
# variance; and what a coarse code costs beyond that noise, in the same unit: 1 bit carries a
# systematic distortion of signs, 4 bits none. The costs are set by hand after the KL of a few files
# of one 135M fine-tune, not fitted; they only decide which of two near-equal settings goes first.
QUANTIZATION_NOISE: Mapping[int, float] = {1: 0.571, 2: 0.12, 4: 0.0115}
SYSTEMATIC_COST: Mapping[int, float] = {1: 10.0, 2: 1.0, 4: 0.0}
MAX_ALPHA = 1024
GROUP = 64  # entries, about; the group holds a whole number of survivors


@dataclass(frozen=True, slots=True)
class Template:
    """Modules that store the same parts: a shape, its options, and how many there are."""

    codec: str
    shape: tuple[int, ...]
    options: Options
    count: int

    def nbytes(self, changes: Options) -> int:
        """Bytes of all these modules with some options changed."""
        parts = CODECS[self.codec].parts(self.shape, {**self.options, **_fitting(self, changes)})
        return self.count * sum(
            math.prod(shape) * dtype.itemsize for dtype, shape in parts.values()
        )


def templates_of(packed: Iterable[tuple[Packed, int]]) -> list[Template]:
    """Templates from one packed example of each kind, and how many modules it stands for."""
    return [Template(p.codec, tuple(p.shape), p.options, count) for p, count in packed]


def choose(codec: str, templates: Iterable[Template], limit: int, fixed: Options) -> Options:
    """The first candidate whose tensors take at most `limit` bytes.

    `fixed` are options that the caller asked for by name; candidates that contradict them are out.

    Raises:
        CompressionRefused: even the smallest candidate is too large.
    """
    kinds = list(templates)
    smallest: tuple[int, Options] | None = None
    for candidate in CANDIDATES[codec](fixed):
        if any(fixed.get(key, value) != value for key, value in candidate.items()):
            continue
        size = sum(kind.nbytes(candidate) for kind in kinds)
        if size <= limit:
            return candidate
        if smallest is None or size < smallest[0]:
            smallest = (size, candidate)
    raise CompressionRefused(_too_large(codec, limit, smallest))


def group_size_of(alpha: int) -> int:
    """The default group for a dropout factor: about GROUP entries, a whole number of survivors."""
    return alpha * max(1, round(GROUP / alpha))


def deltadq_candidates(fixed: Options) -> Iterator[dict[str, Any]]:
    """Bits and alpha by rising noise alpha (1 + q) - 1, in units of |D|^2, plus systematic cost.

    At equal bytes more survivors of fewer bits win, until the distortion of 1 bit outweighs it.
    """
    group = "group_size" not in fixed
    settings = [
        (alpha * (1 + noise) - 1 + SYSTEMATIC_COST[bits], alpha, bits)
        for bits, noise in QUANTIZATION_NOISE.items()
        for alpha in _alphas()
    ]
    for _, alpha, bits in sorted(settings):
        size = {"group_size": group_size_of(alpha)} if group else {}
        yield {"bits": bits, "alpha": alpha, **size}


def _alphas() -> list[int]:
    """1, 2, 3 ... and then in steps of about 3 %."""
    values = [1]
    while values[-1] < MAX_ALPHA:
        values.append(max(values[-1] + 1, round(values[-1] * 1.03)))
    return values


def lora_candidates(fixed: Options) -> Iterator[dict[str, Any]]:
    """Ranks from high to low."""
    return ({"rank": rank} for rank in range(512, 0, -1))


def fixed_size(fixed: Options) -> Iterator[dict[str, Any]]:
    """A codec without a size to choose."""
    return iter([{}])


CANDIDATES: Mapping[str, Callable[[Options], Iterator[dict[str, Any]]]] = {
    "deltadq": deltadq_candidates,
    "lora": lora_candidates,
    "bitdelta": fixed_size,
}


def _fitting(template: Template, changes: Options) -> dict[str, Any]:
    """Changes that this module has room for: no group, alpha or rank beyond its own width."""
    width = min(template.shape) if "rank" in changes else template.shape[-1]
    bounded = ("alpha", "group_size", "rank")
    return {k: min(v, width) if k in bounded else v for k, v in changes.items()}


def _too_large(codec: str, limit: int, smallest: tuple[int, Options] | None) -> str:
    if smallest is None:
        return f"{codec} has no setting that agrees with the options given; leave some out"
    size, options = smallest
    shown = ", ".join(f"{key} {value}" for key, value in options.items() if key != "group_size")
    return (
        f"{codec} cannot make a file this small: its tensors may take {max(limit, 0):,} bytes, but "
        f"take {size:,}{f' at {shown}' if shown else ' and have no setting'}; "
        "allow more bytes, or use deltadq, which reaches the smallest files"
    )
