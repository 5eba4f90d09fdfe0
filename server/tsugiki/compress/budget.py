"""Options that make a variant file small enough: --target-ratio and --max-bytes.

Owns: which settings of a codec trade size for quality, and in which order to try them.
Does not know: weights, files. Sizes are exact: `Codec.parts` says what a module stores before it is
packed.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from tsugiki.codecs import CODECS, deltadq
from tsugiki.codecs.base import Options
from tsugiki.codecs.masks import kept_of
from tsugiki.errors import CompressionRefused

# Squared error of the best k-bit uniform quantizer of a Gaussian, gain matched, relative to its
# variance; and what a coarse code costs beyond that noise, in the same unit: 1 bit carries a
# systematic distortion of signs, 4 bits none. The costs are set by hand after the KL of a few files
# of one 135M fine-tune, not fitted; they only decide which of two settings of about the size that
# was asked for is taken.
QUANTIZATION_NOISE: Mapping[int, float] = {1: 0.571, 2: 0.12, 3: 0.0374, 4: 0.0115}
SYSTEMATIC_COST: Mapping[int, float] = {1: 10.0, 2: 1.0, 3: 0.3, 4: 0.0}
MAX_ALPHA = 1024
GROUP = 64  # entries of a group, about
RATE_STEP = 1.01  # between two dropout rates that are worth telling apart


class TooSmall(CompressionRefused):
    """A file as small as asked for does not exist."""


@dataclass(frozen=True, slots=True)
class Template:
    """Modules that store the same parts: a shape, its options, and how many there are."""

    codec: str
    shape: tuple[int, ...]
    options: Options
    count: int
    share: float = 1.0  # of the bytes that options stand for, see `shared_out`

    def nbytes(self, changes: Options) -> int:
        """Bytes of all these modules with some options changed."""
        taken = shared_out(self.codec, changes, self.share, self.shape[-1])
        options = {**self.options, **_fitting(self, taken)}
        return self.count * _bytes(self.codec, self.shape, tuple(sorted(options.items())))


@lru_cache(maxsize=2**15)
def _bytes(codec: str, shape: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> int:
    """Of one module; searches ask for the same ones again and again."""
    parts = CODECS[codec].parts(shape, dict(options))
    return sum(math.prod(size) * dtype.itemsize for dtype, size in parts.values())


def choose(
    codec: str, templates: Iterable[Template], limit: int, fixed: Options, least: int = 0
) -> Options:
    """The first candidate whose tensors take `least` to `limit` bytes; where there is none, the
    first that takes less.

    `fixed` are options that the caller asked for by name; candidates that contradict them are out.

    Raises:
        TooSmall: even the smallest candidate is too large.
    """
    kinds = list(templates)
    smaller: Options | None = None
    smallest: tuple[int, Options] | None = None
    for candidate in CANDIDATES[codec](fixed):
        if any(fixed.get(key, value) != value for key, value in candidate.items()):
            continue
        size = sum(kind.nbytes(candidate) for kind in kinds)
        if least <= size <= limit:
            return candidate
        if size < least:
            smaller = smaller or candidate
        elif smallest is None or size < smallest[0]:
            smallest = (size, candidate)
    if smaller is None:
        raise TooSmall(_too_large(codec, limit, smallest))
    return smaller


def group_size_of(alpha: int) -> int:
    """The default group for a dropout factor: about GROUP entries, a whole number of survivors."""
    return alpha * max(1, round(GROUP / alpha))


def deltadq_candidates(fixed: Options) -> Iterator[dict[str, Any]]:
    """Bits and dropout by rising noise r (1 + q) - 1, in units of |D|^2, plus systematic cost.

    r is what the mask really divides by, the size of a group / what is kept of it. At equal bytes
    more survivors of fewer bits win, until the distortion of 1 bit outweighs it.
    """
    asked = fixed.get("group_size")
    if asked is None:
        dropouts = _dropouts()
    else:
        rates = ((asked / kept_of(asked, a), a, asked) for a in _alphas() if a <= asked)
        dropouts = tuple(rates)
    settings = [
        (rate * (1 + noise) - 1 + SYSTEMATIC_COST[bits], alpha, bits, group)
        for bits, noise in QUANTIZATION_NOISE.items()
        for rate, alpha, group in dropouts
    ]
    for _, alpha, bits, group in sorted(settings):
        yield {"bits": bits, "alpha": alpha, "group_size": group}


@cache
def _dropouts() -> tuple[tuple[float, int, int], ...]:
    """(rate, alpha, group size), ascending, in steps of about 1 % where there are any.

    alpha is an integer, but a group need not hold a whole number of survivors: of 18 entries at
    alpha 5 are kept 4, which is a rate of 4.5. Of equal rates a whole one is taken, else that of
    the group nearest to GROUP.
    """
    best: dict[int, tuple[bool, int, float, int, int]] = {}
    for alpha in _alphas():
        for group in (group_size_of(alpha), *range(alpha, 2 * GROUP)):
            rate = group / kept_of(group, alpha)
            found = (rate != alpha, abs(group - GROUP), rate, alpha, group)
            step = round(math.log(rate, RATE_STEP))
            best[step] = min(found, best.get(step, found))
    return tuple(sorted((rate, alpha, group) for _, _, rate, alpha, group in best.values()))


def _alphas() -> list[int]:
    """1, 2, 3 ... and then in steps of about 3 %."""
    values = [1]
    while values[-1] < MAX_ALPHA:
        values.append(max(values[-1] + 1, round(values[-1] * 1.03)))
    return values


def shared_dropout(options: Options, share: float, width: int) -> dict[str, Any]:
    """Options that keep about `share` times the survivors of rows of this width."""
    alpha = int(options.get("alpha", deltadq.DEFAULTS["alpha"]))
    group = options.get("group_size") or group_size_of(alpha)
    alpha, group = _nearest_dropout(group / kept_of(group, alpha) / share)
    return {**options, "alpha": min(alpha, width), "group_size": min(group, width)}


def _nearest_dropout(rate: float) -> tuple[int, int]:
    """(alpha, group size) of the rate that is nearest, as a ratio."""
    known = _dropouts()
    above = bisect_left(known, (rate,))
    near = known[max(0, above - 1) : above + 1]
    _, alpha, group = min(near, key=lambda found: abs(math.log(found[0] / rate)))
    return alpha, group


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


# Codecs whose matrices may take different shares of the bytes.
SHARED: Mapping[str, Callable[[Options, float, int], dict[str, Any]]] = {"deltadq": shared_dropout}


def shared_out(codec: str, options: Options, share: float, width: int) -> Options:
    """The options of a matrix that takes `share` times the bytes that `options` stand for, where
    the codec can do that."""
    return SHARED[codec](options, share, width) if codec in SHARED and share != 1 else options


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
