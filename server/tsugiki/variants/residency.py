"""Which variants are in memory: two tiers with byte budgets, LRU, pins and references.

Owns: what is in which tier, and what may leave it. Called from the engine thread only, between two
steps, except `snapshot` and `stats`, which any thread may ask. Loading itself happens behind
`LoadSource` (loads.py, loader.py), so no call here ever waits.
Does not know names (registry.py), files (loader.py), how bytes add up (tier.py) or requests.

disk -> host: a file is read, its digest and its values verified, once; its packed content stays on
host. host -> device: the content is staged into the form that the kernels read; that is a copy, so
no byte belongs to both tiers and none is counted twice. The host tier is a cache behind the device
(vLLM's max_cpu_loras): what the device evicts is `host` and needs only staging, as long as nothing
used later took its room there. With a host budget of 0 nothing packed outlives its staging; that
is the default on a CPU, where the copies would lie in the same memory.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from tsugiki.codecs.base import ResidentVariant
from tsugiki.errors import Conflict
from tsugiki.variants.loader import LoadOutcome, PackedVariant
from tsugiki.variants.loads import LoadQueue, LoadSource, LoadTotals
from tsugiki.variants.status import OnTransition, ResidencyInfo, State, StatusBoard
from tsugiki.variants.tier import Tier, TierStats

__all__ = ["EVICTED", "LoadSource", "LoadTotals", "Residency", "ResidencyInfo", "TierStats"]

EVICTED = "evicted"  # the reason of a transition that made room
ABANDONED = "nobody waits for it any more"


class Residency:
    """The laws, tested as a state machine:

    - the bytes of each tier never exceed its budget; at most `max_loads` loads are beside them;
    - what is referenced or pinned never leaves the device, and what `poll` delivered stays at least
      until the next `poll`, so that its waiting requests can take a reference;
    - every `request` of a digest that is not on the device is answered by one outcome of `poll`; a
      load that finds no room waits, first come first served, until references are released.
    """

    def __init__(
        self,
        source: LoadSource,
        budget_bytes: int,
        *,
        host_bytes: int = 0,
        idle_bytes: int = 0,
        max_loads: int = 2,
        clock: Callable[[], float] = time.time,
        on_transition: OnTransition | None = None,
    ) -> None:
        """`idle_bytes` of the device may hold what variants shared that have left: see `Tier`."""
        self._clock = clock
        self._device = Tier[ResidentVariant]("device", budget_bytes, idle_bytes=idle_bytes)
        self._host = Tier[PackedVariant]("host", host_bytes)
        self._loads = LoadQueue(source, max_loads)
        self._status = StatusBoard(on_transition)
        self._evicted: list[str] = []  # from the device, not yet told
        self._references: dict[str, int] = {}
        self._pinned: set[str] = set()

    @property
    def budget_bytes(self) -> int:
        """Of the device."""
        return self._device.budget_bytes

    @property
    def resident_bytes(self) -> int:
        """On the device, shared parts once."""
        return self._device.bytes

    @property
    def loads(self) -> LoadTotals:
        """The loads so far; any thread may ask."""
        return self._loads.totals

    def get(self, digest: str) -> ResidentVariant | None:
        """The variant on the device, now the most recently used; None: it must be requested."""
        return self._device.use(digest)

    def look_up(self, digest: str) -> bool:
        """Whether it is on the device, counted as a hit or a miss: once for each new request."""
        found = digest in self._device
        self._device.count(found)
        return found

    def request(self, digest: str, *, retry: bool = False) -> None:
        """Bring a digest to the device in the background; repeating it changes nothing.

        A digest that failed before is answered with that failure again, unless `retry`.
        """
        if digest in self._device or digest in self._loads:
            return
        info = self._status.info(digest)
        if info.state == "failed" and not retry:
            self._loads.answer(digest, info.error)
            return
        self._loads.add(digest)
        self._status.publish(digest, state="loading", error=None)
        self._loads.start(self._packed)

    def abandon(self, wanted: Collection[str]) -> None:
        """Give up what was requested and is no longer `wanted`, unless its load is under way: it
        would keep others out of the line."""
        for digest in self._loads.in_line():
            if digest not in wanted:
                self._loads.cancel(digest, ABANDONED)
                self._status.publish(digest, ABANDONED, state=self._off_device(digest))

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

    def on_device(self) -> list[str]:
        """Resident digests, the least recently used first."""
        return self._device.oldest_first()

    def pinned(self, digest: str) -> bool:
        """Whether a pin keeps it on the device."""
        return digest in self._pinned

    def arriving(self, digest: str) -> bool:
        """Whether it was requested and is not yet answered."""
        return digest in self._loads

    def without_room(self) -> list[str]:
        """Digests that are loaded but wait until others are released, first come first."""
        return [outcome.digest for outcome in self._loads.loaded]

    def poll(self, keep: Collection[str] = ()) -> list[LoadOutcome]:
        """Take in what was loaded, evicting as needed, and start what is queued. Once per step.

        Nothing in `keep` is evicted from the device. Returns the loads that ended: `variant` is
        resident until the next poll at least, or `error` says why there is none.
        """
        for outcome in self._loads.take_in():
            self._keep_packed(outcome)
        outcomes = self._loads.take_answers()
        kept = set(keep)
        while self._loads.loaded:
            answer = self._settle(self._loads.loaded[0], kept)
            if answer is None:
                break
            self._loads.loaded.popleft()
            kept.add(answer.digest)
            outcomes.append(answer)
        self._loads.start(self._packed)
        return outcomes

    def take_evicted(self) -> list[str]:
        """What made room on the device since the last call: whoever holds it must let go."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def unload(self, digest: str) -> int:
        """Drop a variant from both tiers, and its pin, or cancel its load; returns bytes freed.

        Raises:
            Conflict: requests still use it.
        """
        if count := self.references(digest):
            raise Conflict(f"variant {digest} is used by {count} requests; wait until they end")
        freed = self._drop(digest, "unloaded before it was ready")
        self._status.publish(digest, "unloaded", state="disk", error=None, pinned=False)
        return freed

    def pin(self, digest: str, pinned: bool) -> None:
        """Keep a variant on the device once it is there (it is not loaded by this), or let it."""
        (self._pinned.add if pinned else self._pinned.discard)(digest)
        self._status.publish(digest, pinned=pinned)

    def fail(self, digest: str, reason: str) -> None:
        """Take a variant that misbehaved out of service, its users and its pin notwithstanding."""
        self._drop(digest, reason)
        self._status.publish(digest, reason, state="failed", error=reason, pinned=False)

    def forget(self, digest: str) -> None:
        """Drop the record of a deleted digest, unless something still uses it."""
        held = digest in self._device or digest in self._host or not self._loads.idle(digest)
        if not held and not self.references(digest):
            self._pinned.discard(digest)
            self._status.forget(digest)

    def snapshot(self) -> Mapping[str, ResidencyInfo]:
        """An immutable view, safe from any thread. A digest that is absent is on disk, unused."""
        return self._status.snapshot()

    def stats(self) -> tuple[TierStats, ...]:
        """Host and device; any thread may ask. A hit of the device is a request that needed no
        load, one of the host a load that needed no file."""
        return self._host.stats(), self._device.stats()

    def _packed(self, digest: str) -> PackedVariant | None:
        """What a load that begins now can start from."""
        self._host.count(digest in self._host)
        return self._host.use(digest)

    def _keep_packed(self, outcome: LoadOutcome) -> None:
        """Keep on host what was read, in place of what was used least recently."""
        digest, packed = outcome.digest, outcome.packed
        if packed is None:
            return
        self._host.drop(digest)
        # What is on the device is in use, whenever its packed content was last read.
        candidates = sorted(self._host.oldest_first(), key=self._device.__contains__)
        victims = self._host.victims(packed, candidates)
        if victims is None:
            return
        for victim in victims:
            self._host.evict(victim)
            if self._status.info(victim).state == "host":
                self._status.publish(victim, EVICTED, state="disk")
        self._host.put(digest, packed)

    def _settle(self, outcome: LoadOutcome, keep: set[str]) -> LoadOutcome | None:
        """The answer to a finished load, or None while it must wait for room."""
        digest, variant = outcome.digest, outcome.variant
        if variant is None:
            self._host.drop(digest)
            self._status.publish(digest, outcome.error, state="failed", error=outcome.error)
            return outcome
        if refusal := self._refusal(variant):
            # Too large beside the pins only: another time it may fit, so it is not a failure.
            never = self._device.beside(variant, ()) > self.budget_bytes
            state = "failed" if never else self._off_device(digest)
            self._status.publish(digest, refusal, state=state, error=refusal)
            return replace(outcome, variant=None, error=refusal)
        if not self._make_room(variant, keep):
            return None
        self._device.put(digest, variant)
        self._status.publish(
            digest,
            state="ready",
            resident_bytes=variant.nbytes,
            load_ms=outcome.load_ms,
            timings=outcome.timings,
            error=None,
        )
        return outcome

    def _refusal(self, variant: ResidentVariant) -> str | None:
        """Why this variant could wait for room forever."""
        budget, needs = self.budget_bytes, self._device.beside(variant, ())
        if needs > budget:
            return (
                f"needs {needs} bytes in memory, over the whole budget of {budget}; "
                "raise --variant-memory"
            )
        pins = self._device.beside(variant, self._pinned) - needs
        if needs + pins > budget:
            return (
                f"needs {needs} bytes in memory, but pinned variants hold {pins} of {budget}; "
                "unpin one or raise --variant-memory"
            )
        return None

    def _make_room(self, variant: ResidentVariant, keep: set[str]) -> bool:
        """Evict the least recently used idle variants until this one fits; all or nothing."""
        busy = keep | self._pinned | self._references.keys()
        idle = [digest for digest in self.on_device() if digest not in busy]
        victims = self._device.victims(variant, idle)
        for digest in victims or ():
            self._device.evict(digest)
            self._evicted.append(digest)
            self._host.use(digest)  # it was in use until now
            self._status.publish(digest, EVICTED, state=self._off_device(digest))
        return victims is not None

    def _drop(self, digest: str, reason: str) -> int:
        """Leave nothing of a digest in memory or on its way; returns the bytes freed."""
        self._pinned.discard(digest)
        self._loads.cancel(digest, reason)
        return self._device.drop(digest) + self._host.drop(digest)

    def _off_device(self, digest: str) -> State:
        return "host" if digest in self._host else "disk"

    def _touch(self, digest: str) -> None:
        self._status.publish(digest, references=self.references(digest), last_used=self._clock())
