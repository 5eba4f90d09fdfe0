"""Loads on their way: wanted, at the loader, or loaded and waiting for room.

Owns: the line of digests to load, what was cancelled meanwhile, the outcomes not yet told. Lives on
the engine thread and never waits. Does not know budgets (residency.py) or files (loader.py).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tsugiki.variants.loader import LoadOutcome, PackedVariant


class LoadSource(Protocol):
    """Where variants come from: takes digests, gives every one back once, loaded or not."""

    def submit(self, digest: str, packed: PackedVariant | None) -> None:
        """Begin loading in the background, from packed content or from disk; never blocks."""

    def finished(self) -> list[LoadOutcome]:
        """The loads that ended since the last call; never blocks."""


@dataclass(frozen=True, slots=True)
class LoadTotals:
    """All loads that ended since start, and the seconds that their parts took."""

    count: int = 0
    read: float = 0.0
    verify: float = 0.0
    stage: float = 0.0

    def plus(self, outcome: LoadOutcome) -> "LoadTotals":
        """With one more."""
        spent = outcome.timings
        return LoadTotals(
            self.count + 1,
            self.read + spent.read / 1000,
            self.verify + spent.verify / 1000,
            self.stage + spent.stage / 1000,
        )


class LoadQueue:
    """Every digest that was added is answered once: in `loaded`, until `settled`, or in the answers
    that `take_answers` gives. At most `max_loads` are at the source or loaded and without room, so
    that memory beside the budgets stays bounded.
    """

    def __init__(self, source: LoadSource, max_loads: int) -> None:
        self.totals = LoadTotals()
        self.loaded: deque[LoadOutcome] = deque()  # first come first
        self._source = source
        self._max_loads = max_loads
        self._queued: deque[str] = deque()  # wanted, not yet handed to the source
        self._loading: set[str] = set()  # at the source
        self._cancelled: dict[str, str] = {}  # at the source, no longer wanted: why
        self._answers: list[LoadOutcome] = []  # outcomes that settle nothing

    def __contains__(self, digest: str) -> bool:
        """On its way and wanted."""
        return self._under_way(digest) and digest not in self._cancelled

    def add(self, digest: str) -> None:
        """Load a digest that is not in it; a cancelled load that is not over goes on instead.

        The answer to a load that was cancelled before is the answer to this one.
        """
        self._answers = [answer for answer in self._answers if answer.digest != digest]
        if self._cancelled.pop(digest, None) is None:
            self._queued.append(digest)

    def answer(self, digest: str, error: str | None) -> None:
        """Refuse a digest without a load."""
        self._answers.append(LoadOutcome(digest, None, error))

    def cancel(self, digest: str, reason: str) -> None:
        """It is no longer wanted; what is at the source is answered when it comes back."""
        if digest in self._loading:
            self._cancelled[digest] = reason
        elif digest in self._queued:
            self._queued.remove(digest)
            self.answer(digest, reason)
        for outcome in [outcome for outcome in self.loaded if outcome.digest == digest]:
            self.loaded.remove(outcome)
            self.answer(digest, reason)

    def in_line(self) -> list[str]:
        """Digests that nothing is done for now: not begun, or loaded and waiting for room."""
        return [*self._queued, *(outcome.digest for outcome in self.loaded)]

    def start(self, packed: Callable[[str], PackedVariant | None]) -> None:
        """Hand to the source what there is room for, with the packed content where it is known."""
        while self._queued and len(self._loading) + len(self.loaded) < self._max_loads:
            digest = self._queued.popleft()
            self._loading.add(digest)
            self._source.submit(digest, packed(digest))

    def take_in(self) -> list[LoadOutcome]:
        """What the source has finished and is still wanted; it is now in `loaded`."""
        finished = []
        for outcome in self._source.finished():
            self._loading.discard(outcome.digest)
            self.totals = self.totals.plus(outcome)
            reason = self._cancelled.pop(outcome.digest, None)
            if reason is None:
                finished.append(outcome)
            else:
                self.answer(outcome.digest, reason)
        self.loaded.extend(finished)
        return finished

    def take_answers(self) -> list[LoadOutcome]:
        """The outcomes that need nothing more."""
        answers, self._answers = self._answers, []
        return answers

    def idle(self, digest: str) -> bool:
        """Nothing of it is under way, wanted or not."""
        return not self._under_way(digest)

    def _under_way(self, digest: str) -> bool:
        return (
            digest in self._loading
            or digest in self._queued
            or any(outcome.digest == digest for outcome in self.loaded)
        )
