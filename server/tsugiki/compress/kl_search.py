"""The smallest file that is close enough: --max-kl.

Owns: which sizes are tried and which is taken. Does not know: how a size is met (sizing.py), how a
divergence is measured (reference.py).

KL per token falls about as 1 / bytes for random masks (docs/codecs.md), so sizes are searched in
octaves: outwards from a usual ratio until one is close enough and one is not, then by bisection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tsugiki.compress.evaluate import Estimate
from tsugiki.compress.progress import Progress
from tsugiki.errors import CompressionRefused

START = 7.0  # log2 of the ratio that is tried first
STRIDE = 2.0  # octaves, until the goal lies between two ratios
PRECISION = 1 / 16  # octaves: 4 % of the bytes, as finely as a size is met
LEAST, MOST = 1.0, 13.0  # octaves: 2x and 8192x

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Content]):
    """A variant of one size, measured."""

    content: Content
    ratio: float  # that was asked for; the file has this or a little more
    kl: Estimate  # KL(tuned || variant), nats per answer token


def smallest(
    attempt: Callable[[float], Attempt[Content] | None], goal: float, progress: Progress
) -> Attempt[Content]:
    """The attempt of the highest ratio whose KL is at most `goal`.

    `attempt(ratio)` packs and measures; None where no file is that small. KL is taken to rise with
    the ratio; where noise breaks that, what is returned was still measured within the goal.

    Raises:
        CompressionRefused: the goal is missed at the largest size.
    """
    search = _Search(attempt, goal, progress)
    return _within(search, *_bracket(search))


def smaller_than(
    ratio: float,
    attempt: Callable[[float], Attempt[Content] | None],
    goal: float,
    progress: Progress,
) -> Attempt[Content] | None:
    """As `smallest`, among ratios above `ratio` alone; None, after one attempt, where the next one
    above it is missed."""
    search = _Search(attempt, goal, progress)
    at = math.log2(ratio) + PRECISION
    return _within(search, *_outwards(search, at)) if search.passes(at) else None


def _within(search: "_Search[Content]", good: float, bad: float) -> Attempt[Content]:
    """The best between a ratio that is close enough and one that is not, in octaves."""
    while bad - good > PRECISION:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if search.passes(middle) else (good, middle)
    return search.best()


def _bracket(search: "_Search[Content]") -> tuple[float, float]:
    """Octaves of a ratio that is close enough and of a larger one that is not.

    Raises:
        CompressionRefused: not even LEAST is close enough.
    """
    at = START
    if search.passes(at):
        return _outwards(search, at)
    while at > LEAST:
        at -= STRIDE
        if search.passes(at):
            return at, at + STRIDE
    raise CompressionRefused(search.complaint())


def _outwards(search: "_Search[Content]", at: float) -> tuple[float, float]:
    """The same from a ratio on that is close enough."""
    while at < MOST and search.passes(at + STRIDE):
        at += STRIDE
    return at, min(MOST, at + STRIDE)


class _Search(Generic[Content]):
    """The best of the attempts so far."""

    def __init__(
        self,
        attempt: Callable[[float], Attempt[Content] | None],
        goal: float,
        progress: Progress,
    ) -> None:
        self._attempt = attempt
        self._goal = goal
        self._progress = progress
        self._taken: Attempt[Content] | None = None
        self._closest: Attempt[Content] | None = None

    def passes(self, octaves: float) -> bool:
        """Whether a file of this ratio is close enough; the best such file is kept."""
        tried = self._attempt(2.0**octaves)
        if tried is None:
            self._progress.stage(f"ratio {2.0**octaves:.1f}: no setting makes a file so small")
            return False
        self._progress.stage(
            f"ratio {tried.ratio:.1f}: KL {tried.kl.value:.5f} "
            f"[{tried.kl.low:.5f}, {tried.kl.high:.5f}], wanted {self._goal}"
        )
        if self._closest is None or tried.kl.value < self._closest.kl.value:
            self._closest = tried
        if tried.kl.value > self._goal:
            return False
        if self._taken is None or tried.ratio > self._taken.ratio:
            self._taken = tried
        return True

    def best(self) -> Attempt[Content]:
        """The smallest attempt that was close enough.

        Raises:
            CompressionRefused: none was.
        """
        if self._taken is None:
            raise CompressionRefused(self.complaint())
        return self._taken

    def complaint(self) -> str:
        """Why there is no result."""
        if self._closest is None:
            return "no setting of this codec makes a file at all; leave some options out"
        return (
            f"no file of at least {2**LEAST:g}x is within --max-kl {self._goal}: the closest, "
            f"{self._closest.ratio:.1f}x, has KL {self._closest.kl.value:.5f}; allow more, or "
            "leave out options that limit the quality"
        )
