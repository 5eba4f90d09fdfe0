"""The laws of residency as a state machine: both tiers, shared parts, failures, restarts."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.variants.stepped_source import Part, Shared, SteppedSource
from tsugiki.errors import Conflict
from tsugiki.variants.residency import Residency

DEVICE, HOST, IDLE = 100, 90, 18
SIZES = {"a": 20, "b": 30, "c": 35, "d": 90, "huge": 95}
SHARED: dict[str, Shared] = {
    "a": (Part("m", 10),),
    "b": (Part("m", 10), Part("n", 5)),
    "c": (Part("n", 5), Part("o", 12)),
    "d": (Part("m", 10),),
    "huge": (Part("m", 10),),
}
SMALL = st.sampled_from(["a", "b", "c"])
DIGESTS = st.sampled_from(["a", "b", "c", "d", "huge", "broken"])


class ResidencyMachine(RuleBasedStateMachine):
    """Requests, references, pins, failures, loads and restarts in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        ticks = iter(range(1, 1_000_000))
        self.source = SteppedSource(SIZES, SHARED)
        self.states: dict[str, str] = {}
        self.residency = Residency(
            self.source,
            DEVICE,
            host_bytes=HOST,
            idle_bytes=IDLE,
            clock=lambda: float(next(ticks)),
            on_transition=self.told,
        )
        self.references: Counter[str] = Counter()
        self.unanswered: set[str] = set()

    def told(self, digest: str, old: str, new: str, reason: str | None) -> None:
        assert old == self.states.get(digest, "disk") != new
        assert new != "failed" or reason
        self.states[digest] = new

    @rule()
    def restart(self) -> None:
        """Nothing in memory survives; what is on disk does not care."""
        self.start()

    @rule(digest=DIGESTS, retry=st.booleans())
    def request(self, digest: str, retry: bool) -> None:
        resident_now = self.residency.look_up(digest)
        self.residency.request(digest, retry=retry)
        if not resident_now:
            self.unanswered.add(digest)

    @rule(digest=DIGESTS)
    def retain(self, digest: str) -> None:
        self.residency.retain(digest)
        self.references[digest] += 1

    @rule(digest=DIGESTS)
    def release(self, digest: str) -> None:
        if self.references[digest]:
            self.residency.release(digest)
            self.references[digest] -= 1

    @rule(digest=DIGESTS, pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        self.residency.pin(digest, pinned)

    @rule(digest=DIGESTS, how=st.sampled_from(["unload", "fail", "forget"]))
    def take_away(self, digest: str, how: str) -> None:
        before = self.bytes_in_memory()
        if how == "forget":
            known = digest in self.residency.snapshot()
            self.residency.forget(digest)
            if known and digest not in self.residency.snapshot():
                self.states.pop(digest, None)
        elif how == "fail":
            self.residency.fail(digest, "misbehaved")
            assert self.residency.get(digest) is None
        elif self.references[digest]:
            with pytest.raises(Conflict):
                self.residency.unload(digest)
        else:
            freed = self.residency.unload(digest)
            assert self.bytes_in_memory() == before - freed
            assert self.residency.get(digest) is None

    @rule(digests=st.lists(SMALL, min_size=1, max_size=3), hold=st.booleans())
    def requests_arrive_and_their_variants_load(self, digests: list[str], hold: bool) -> None:
        for digest in digests:
            self.request(digest, retry=True)
            if hold:
                self.retain(digest)
        self.source.run()
        self.poll(set())

    @rule(index=st.integers(0, 3))
    def one_load_ends(self, index: int) -> None:
        if index < len(self.source.pending):
            self.source.step(index)

    @rule(wanted=st.sets(DIGESTS))
    def abandon(self, wanted: set[str]) -> None:
        """What is at the source comes back all the same; the rest is answered by the next poll."""
        self.residency.abandon(wanted)
        assert set(self.residency.without_room()) <= wanted

    @rule(keep=st.sets(SMALL, max_size=2))
    def poll(self, keep: set[str]) -> None:
        protected = {
            digest
            for digest, info in self.residency.snapshot().items()
            if info.state == "ready" and (info.references or info.pinned or digest in keep)
        }
        outcomes = self.residency.poll(keep)
        for outcome in outcomes:
            assert (outcome.variant is None) == (outcome.error is not None)
            if outcome.variant is not None:
                assert self.residency.get(outcome.digest) is outcome.variant
            self.unanswered.discard(outcome.digest)
        assert protected <= set(self.residency.on_device())
        assert not protected & set(self.residency.take_evicted())

    @rule()
    def quiet_time_answers_everybody(self) -> None:
        """No deadlock: once nobody holds anything, every request is answered."""
        for digest, count in self.references.items():
            for _ in range(count):
                self.residency.release(digest)
        self.references.clear()
        for _ in range(20):
            self.source.run()
            self.poll(set())
        assert self.unanswered == set()
        assert not any(i.state == "loading" for i in self.residency.snapshot().values())

    def bytes_in_memory(self) -> int:
        return sum(tier.bytes for tier in self.residency.stats())

    @invariant()
    def the_budgets_hold_and_the_books_balance(self) -> None:
        host, device = self.residency.stats()
        on_device = self.residency.on_device()
        parts = {part for digest in on_device for part in SHARED[digest]}
        held = sum(nbytes for _, nbytes in parts)
        assert held <= device.shared_bytes <= held + IDLE
        own = sum(SIZES[digest] for digest in on_device)
        assert device.bytes == own + device.shared_bytes <= DEVICE
        on_host = self.residency._host.oldest_first()
        assert host.bytes == sum(SIZES[digest] for digest in on_host) <= HOST
        assert device.variants == len(on_device)

    @invariant()
    def at_most_two_loads_are_beside_the_budgets(self) -> None:
        assert len(self.source.pending) + len(self.residency.without_room()) <= 2

    @invariant()
    def the_snapshot_tells_what_is_so(self) -> None:
        infos = self.residency.snapshot()
        assert {d: i.state for d, i in infos.items() if i.state != "disk"} == {
            digest: state for digest, state in self.states.items() if state != "disk"
        }
        ready = {digest for digest, info in infos.items() if info.state == "ready"}
        assert ready == set(self.residency.on_device())
        on_host = sum(info.state == "host" for info in infos.values())
        assert on_host <= self.residency.stats()[0].variants
        for digest, count in self.references.items():
            assert self.residency.references(digest) == count
            assert not count or infos[digest].references == count


ResidencyMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None
)
test_residency_keeps_its_laws_in_any_order = ResidencyMachine.TestCase
