"""Which variants are in memory: one tier with a byte budget, LRU, pins and references.

Owns the resident variants and their accounting. Called from the engine thread only, between two
steps, except `snapshot`, which any thread may read. Loading itself happens behind `LoadSource`
(loader.py), so no call here ever waits.
Does not know names (registry.py), files (loader.py) or requests (engine/).

On CPU the host and the device tier coincide and a loaded variant is "ready". Where they differ, the
device tier is a second `Residency`: its `LoadSource` copies what the host tier holds into the
device's variant arena, and its budget is that arena.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

from tsugiki.codecs.base import ResidentVariant
from tsugiki.errors import Conflict
from tsugiki.variants.loader import LoadOutcome

Tier = Literal["disk", "loading", "ready", "failed"]


class LoadSource(Protocol):
    """Where variants come from: takes digests, gives every one back once, loaded or not."""

    def submit(self, digest: str) -> None:
        """Begin loading in the background; never blocks."""

    def finished(self) -> list[LoadOutcome]:
        """The loads that ended since the last call; never blocks."""


@dataclass(frozen=True, slots=True)
class ResidencyInfo:
    """One digest as other threads see it."""

    state: Tier = "disk"
    resident_bytes: int = 0
    references: int = 0
    pinned: bool = False
    last_used: float | None = None  # the clock of the residency; unix seconds in a server
    load_ms: float | None = None
    error: str | None = None


_UNKNOWN = ResidencyInfo()


class Residency:
    """One memory tier. The laws, tested as a state machine:

    - resident bytes never exceed the budget; at most `max_loads` loads are beside them;
    - what is referenced or pinned is never evicted, and what `poll` delivered stays at least until
      the next `poll`, so that its waiting requests can take a reference;
    - every `request` of a digest that is not resident is answered by one outcome of `poll`; a load
      that finds no room waits, first come first served, until references are released.
    """

    def __init__(
        self,
        source: LoadSource,
        budget_bytes: int,
        *,
        max_loads: int = 2,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.resident_bytes = 0
        self._source = source
        self._max_loads = max_loads
        self._clock = clock
        self._resident: OrderedDict[str, ResidentVariant] = OrderedDict()  # oldest use first
        self._queued: deque[str] = deque()  # wanted, not yet handed to the source
        self._loading: dict[str, None] = {}  # at the source
        self._cancelled: set[str] = set()  # at the source, no longer wanted
        self._arrived: deque[LoadOutcome] = deque()  # loaded, waiting for room
        self._answers: list[LoadOutcome] = []  # outcomes that needed no load
        self._references: dict[str, int] = {}
        self._pinned: set[str] = set()
        self._snapshot: Mapping[str, ResidencyInfo] = MappingProxyType({})

    def get(self, digest: str) -> ResidentVariant | None:
        """The resident variant, now the most recently used; None when it must be requested."""
        variant = self._resident.get(digest)
        if variant is not None:
            self._resident.move_to_end(digest)
        return variant

    def request(self, digest: str, *, retry: bool = False) -> None:
        """Bring a digest into memory in the background; repeating it changes nothing.

        A digest that failed before is answered with that failure again, unless `retry`.
        """
        arriving = self._on_its_way(digest)
        if digest in self._resident or (arriving and digest not in self._cancelled):
            return
        info = self._info(digest)
        if info.state == "failed" and not retry:
            self._answers.append(LoadOutcome(digest, None, info.error))
            return
        self._cancelled.discard(digest)
        self._publish(digest, state="loading", error=None)
        if not arriving:
            self._queued.append(digest)
            self._start_loads()

    def retain(self, digest: str) -> None:
        """One more request uses this digest; it need not be resident yet."""
        self._references[digest] = self._references.get(digest, 0) + 1
        self._touch(digest)

    def release(self, digest: str) -> None:
        """One request less."""
        count = self._references[digest] - 1
        if count:
            self._references[digest] = count
        else:
            del self._references[digest]
        self._touch(digest)

    def references(self, digest: str) -> int:
        """Requests that use this digest now."""
        return self._references.get(digest, 0)

    def without_room(self) -> list[str]:
        """Digests that are loaded but wait until others are released, first come first."""
        return [outcome.digest for outcome in self._arrived]

    def poll(self) -> list[LoadOutcome]:
        """Take in what was loaded, evicting as needed, and start what is queued. Once per step.

        Returns the loads that ended: `variant` is resident until the next poll at least, or `error`
        says why there is none.
        """
        for outcome in self._source.finished():
            del self._loading[outcome.digest]
            self._arrived.append(outcome)
        outcomes, self._answers = self._answers, []
        delivered: set[str] = set()
        while self._arrived:
            answer = self._settle(self._arrived[0], delivered)
            if answer is None:
                break
            self._arrived.popleft()
            delivered.add(answer.digest)
            outcomes.append(answer)
        self._start_loads()
        return outcomes

    def unload(self, digest: str) -> int:
        """Drop a variant and its pin, or cancel its load; returns the resident bytes freed.

        Raises:
            Conflict: requests still use it.
        """
        if count := self.references(digest):
            raise Conflict(f"variant {digest} is used by {count} requests; wait until they end")
        self._pinned.discard(digest)
        self._cancel(digest, "unloaded before it was ready")
        freed = self._drop(digest)
        self._publish(digest, state="disk", error=None, pinned=False)
        return freed

    def pin(self, digest: str, pinned: bool) -> None:
        """Keep a variant in memory once it is there (it is not loaded by this), or let it go."""
        (self._pinned.add if pinned else self._pinned.discard)(digest)
        self._publish(digest, pinned=pinned)

    def fail(self, digest: str, reason: str) -> None:
        """A variant that misbehaved in a step: out of memory at once, and refused from now on."""
        self._pinned.discard(digest)
        self._cancel(digest, reason)
        self._drop(digest)
        self._publish(digest, state="failed", error=reason, pinned=False)

    def forget(self, digest: str) -> None:
        """Drop the record of a deleted digest, unless something still uses it."""
        idle = digest not in self._resident and not self._on_its_way(digest)
        if idle and not self.references(digest):
            self._pinned.discard(digest)
            self._snapshot = MappingProxyType(
                {known: info for known, info in self._snapshot.items() if known != digest}
            )

    def snapshot(self) -> Mapping[str, ResidencyInfo]:
        """An immutable view, safe from any thread. A digest that is absent is on disk, unused."""
        return self._snapshot

    def _on_its_way(self, digest: str) -> bool:
        return (
            digest in self._loading
            or digest in self._queued
            or any(outcome.digest == digest for outcome in self._arrived)
        )

    def _start_loads(self) -> None:
        # An arrived variant without room counts: memory beyond the budget stays bounded.
        while self._queued and len(self._loading) + len(self._arrived) < self._max_loads:
            digest = self._queued.popleft()
            self._loading[digest] = None
            self._source.submit(digest)

    def _cancel(self, digest: str, reason: str) -> None:
        if digest in self._loading:
            self._cancelled.add(digest)  # answered when the source gives it back
            return
        if digest in self._queued:
            self._queued.remove(digest)
            self._answers.append(LoadOutcome(digest, None, reason))
        for outcome in [o for o in self._arrived if o.digest == digest]:
            self._arrived.remove(outcome)
            self._answers.append(LoadOutcome(digest, None, reason))

    def _settle(self, outcome: LoadOutcome, delivered: set[str]) -> LoadOutcome | None:
        """The answer to a finished load, or None while it must wait for room."""
        digest, variant = outcome.digest, outcome.variant
        if digest in self._cancelled:
            self._cancelled.discard(digest)
            return LoadOutcome(digest, None, self._info(digest).error or "the load was cancelled")
        if variant is None:
            self._publish(digest, state="failed", error=outcome.error)
            return outcome
        if refusal := self._refusal(variant):
            # Too large beside the pins only: another time it may fit, so it is not a failure.
            state: Tier = "failed" if variant.nbytes > self.budget_bytes else "disk"
            self._publish(digest, state=state, error=refusal)
            return replace(outcome, variant=None, error=refusal)
        if not self._make_room(variant.nbytes, delivered):
            return None
        self._resident[digest] = variant
        self.resident_bytes += variant.nbytes
        self._publish(
            digest,
            state="ready",
            resident_bytes=variant.nbytes,
            load_ms=outcome.load_ms,
            error=None,
        )
        return outcome

    def _refusal(self, variant: ResidentVariant) -> str | None:
        """Why this variant could wait for room forever."""
        pinned = sum(v.nbytes for digest, v in self._resident.items() if digest in self._pinned)
        if variant.nbytes > self.budget_bytes:
            return (
                f"needs {variant.nbytes} bytes in memory, over the whole budget of "
                f"{self.budget_bytes}; raise --variant-memory"
            )
        if variant.nbytes > self.budget_bytes - pinned:
            return (
                f"needs {variant.nbytes} bytes in memory, but pinned variants hold {pinned} of "
                f"{self.budget_bytes}; unpin one or raise --variant-memory"
            )
        return None

    def _make_room(self, nbytes: int, keep: set[str]) -> bool:
        """Evict the least recently used idle variants until `nbytes` fit; all or nothing."""
        missing = nbytes - (self.budget_bytes - self.resident_bytes)
        victims: list[str] = []
        for digest, variant in self._resident.items():
            if missing <= 0:
                break
            if digest in self._references or digest in self._pinned or digest in keep:
                continue
            victims.append(digest)
            missing -= variant.nbytes
        if missing > 0:
            return False
        for digest in victims:
            self._drop(digest)
            self._publish(digest, state="disk")
        return True

    def _drop(self, digest: str) -> int:
        variant = self._resident.pop(digest, None)
        freed = 0 if variant is None else variant.nbytes
        self.resident_bytes -= freed
        return freed

    def _touch(self, digest: str) -> None:
        self._publish(digest, references=self.references(digest), last_used=self._clock())

    def _info(self, digest: str) -> ResidencyInfo:
        return self._snapshot.get(digest, _UNKNOWN)

    def _publish(self, digest: str, **changes: Any) -> None:
        info = replace(self._info(digest), **changes)
        if info.state != "ready":
            info = replace(info, resident_bytes=0)
        # A copy per change: readers in other threads keep whatever mapping they took.
        self._snapshot = MappingProxyType({**self._snapshot, digest: info})
