"""The laws of one memory tier, by example and as a state machine under a step-by-step loader."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.variants.stepped_source import SteppedSource
from tsugiki.errors import Conflict
from tsugiki.variants.loader import LoadOutcome
from tsugiki.variants.residency import Residency


def tier(budget: int = 100, **sizes: int) -> tuple[Residency, SteppedSource]:
    source = SteppedSource(sizes)
    ticks = iter(range(1, 1_000_000))
    return Residency(source, budget, clock=lambda: float(next(ticks))), source


def load(residency: Residency, source: SteppedSource, *digests: str) -> list[LoadOutcome]:
    outcomes = []
    for digest in digests:
        residency.request(digest)
        source.run()
        outcomes += residency.poll()
    return outcomes


def test_a_requested_variant_is_resident_after_its_load_was_polled() -> None:
    residency, source = tier(a=40)
    assert residency.get("a") is None
    residency.request("a")
    assert residency.snapshot()["a"].state == "loading"
    assert residency.poll() == []
    source.run()
    (outcome,) = residency.poll()
    assert outcome.digest == "a"
    assert residency.get("a") is outcome.variant
    info = residency.snapshot()["a"]
    assert (info.state, info.resident_bytes, info.load_ms) == ("ready", 40, 5.0)
    assert residency.resident_bytes == 40


def test_requesting_again_does_not_load_again() -> None:
    residency, source = tier(a=40)
    residency.request("a")
    residency.request("a")
    source.run()
    assert len(residency.poll()) == 1
    residency.request("a")
    assert source.submitted["a"] == 1
    assert residency.poll() == []


def test_the_least_recently_used_idle_variant_is_evicted() -> None:
    residency, source = tier(a=40, b=40, c=40)
    load(residency, source, "a", "b")
    residency.get("a")
    load(residency, source, "c")
    assert residency.get("b") is None
    assert residency.get("a") is not None
    assert residency.snapshot()["b"].state == "disk"
    assert residency.snapshot()["b"].resident_bytes == 0


def test_references_and_pins_are_never_evicted() -> None:
    residency, source = tier(a=40, b=40, c=40)
    load(residency, source, "a", "b")
    residency.retain("a")
    residency.pin("b", True)
    assert load(residency, source, "c") == []
    assert residency.resident_bytes == 80
    residency.release("a")
    (outcome,) = residency.poll()
    assert outcome.digest == "c"
    assert residency.get("a") is None


def test_what_one_poll_delivers_does_not_evict_what_it_delivered() -> None:
    residency, source = tier(a=60, b=60)
    residency.request("a")
    residency.request("b")
    source.run()
    assert [o.digest for o in residency.poll()] == ["a"]
    assert [o.digest for o in residency.poll()] == ["b"]


def test_a_variant_over_the_whole_budget_fails_with_the_remedy() -> None:
    residency, source = tier(a=101)
    (outcome,) = load(residency, source, "a")
    assert outcome.variant is None
    assert "101 bytes" in str(outcome.error)
    assert "--variant-memory" in str(outcome.error)
    assert residency.snapshot()["a"].state == "failed"


def test_a_variant_that_only_pins_keep_out_is_refused_but_may_try_again() -> None:
    residency, source = tier(a=60, b=60)
    load(residency, source, "a")
    residency.pin("a", True)
    (outcome,) = load(residency, source, "b")
    assert "unpin" in str(outcome.error)
    assert residency.snapshot()["b"].state == "disk"
    residency.pin("a", False)
    (outcome,) = load(residency, source, "b")
    assert outcome.variant is not None


def test_a_load_error_makes_the_variant_failed_with_the_reason() -> None:
    residency, source = tier()
    (outcome,) = load(residency, source, "gone")
    assert outcome.error == "no such file"
    assert residency.snapshot()["gone"].state == "failed"
    assert residency.snapshot()["gone"].error == "no such file"


def test_a_failed_variant_answers_again_without_loading_until_it_is_retried() -> None:
    residency, source = tier()
    load(residency, source, "a")
    residency.request("a")
    assert [o.error for o in residency.poll()] == ["no such file"]
    assert source.submitted["a"] == 1
    source.sizes["a"] = 10
    residency.request("a", retry=True)
    source.run()
    assert residency.poll()[0].variant is not None
    assert residency.snapshot()["a"].error is None


def test_a_variant_that_misbehaves_leaves_memory_and_is_refused() -> None:
    residency, source = tier(a=40)
    load(residency, source, "a")
    residency.retain("a")
    residency.fail("a", "non-finite logits")
    assert residency.get("a") is None
    assert residency.resident_bytes == 0
    residency.request("a")
    assert [o.error for o in residency.poll()] == ["non-finite logits"]


def test_unload_refuses_while_requests_use_the_variant_and_then_reports_bytes() -> None:
    residency, source = tier(a=40)
    load(residency, source, "a")
    residency.retain("a")
    with pytest.raises(Conflict, match="1 requests"):
        residency.unload("a")
    residency.release("a")
    residency.pin("a", True)
    assert residency.unload("a") == 40
    assert residency.resident_bytes == 0
    assert not residency.snapshot()["a"].pinned


@pytest.mark.parametrize("moment", ["queued", "loading", "arrived"])
def test_unloading_a_variant_on_its_way_answers_its_request(moment: str) -> None:
    residency, source = tier(a=40, b=40, c=40)
    if moment == "queued":
        residency.request("b")
        residency.request("c")
    if moment == "arrived":
        load(residency, source, "b", "c")
        residency.retain("b")
        residency.retain("c")
    residency.request("a")
    if moment == "arrived":
        source.run()
        assert residency.poll() == []
    assert residency.unload("a") == 0
    source.run()
    answers = [o for o in residency.poll() if o.digest == "a"]
    assert [o.variant for o in answers] == [None]
    assert residency.snapshot()["a"].state == "disk"
    assert residency.get("a") is None


def test_a_cancelled_load_that_is_wanted_again_is_delivered() -> None:
    residency, source = tier(a=40)
    residency.request("a")
    residency.unload("a")
    residency.request("a")
    source.run()
    (outcome,) = residency.poll()
    assert outcome.variant is not None
    assert source.submitted["a"] == 1


def test_a_snapshot_does_not_change_under_its_reader() -> None:
    residency, source = tier(a=40)
    before = residency.snapshot()
    load(residency, source, "a")
    assert dict(before) == {}
    assert residency.snapshot()["a"].state == "ready"


def test_forgetting_a_deleted_digest_leaves_no_record() -> None:
    residency, source = tier(a=40)
    load(residency, source, "a")
    residency.forget("a")
    assert "a" in residency.snapshot(), "still resident: nothing to forget yet"
    residency.unload("a")
    residency.forget("a")
    assert "a" not in residency.snapshot()


SMALL = st.sampled_from(["a", "b", "c"])
DIGESTS = st.sampled_from(["a", "b", "c", "d", "huge", "broken"])


class ResidencyMachine(RuleBasedStateMachine):
    """Requests, references, pins, failures and loads in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.residency, self.source = tier(a=30, b=40, c=60, d=100, huge=101)
        self.references: Counter[str] = Counter()
        self.unanswered: set[str] = set()
        self.delivered: set[str] = set()

    @rule(digest=DIGESTS, retry=st.booleans())
    def request(self, digest: str, retry: bool) -> None:
        resident_now = self.residency.get(digest) is not None
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
        before = self.residency.resident_bytes
        if how == "forget":
            self.residency.forget(digest)
        elif how == "fail":
            self.residency.fail(digest, "misbehaved")
            assert self.residency.get(digest) is None
        elif self.references[digest]:
            with pytest.raises(Conflict):
                self.residency.unload(digest)
        else:
            freed = self.residency.unload(digest)
            assert self.residency.resident_bytes == before - freed
            assert self.residency.get(digest) is None

    @rule(digests=st.lists(SMALL, min_size=1, max_size=3), hold=st.booleans())
    def requests_arrive_and_their_variants_load(self, digests: list[str], hold: bool) -> None:
        for digest in digests:
            self.request(digest, retry=True)
            if hold:
                self.retain(digest)
        self.source.run()
        self.poll()

    @rule(index=st.integers(0, 3))
    def one_load_ends(self, index: int) -> None:
        if index < len(self.source.pending):
            self.source.step(index)

    @rule()
    def poll(self) -> None:
        protected = {
            digest
            for digest, info in self.residency.snapshot().items()
            if info.state == "ready" and (info.references or info.pinned)
        }
        outcomes = self.residency.poll()
        for outcome in outcomes:
            assert (outcome.variant is None) == (outcome.error is not None)
            if outcome.variant is not None:
                assert self.residency.get(outcome.digest) is outcome.variant
            self.unanswered.discard(outcome.digest)
        assert all(self.residency.get(digest) is not None for digest in protected)

    @rule()
    def quiet_time_answers_everybody(self) -> None:
        """No deadlock: once nobody holds anything, every request is answered."""
        for digest, count in self.references.items():
            for _ in range(count):
                self.residency.release(digest)
        self.references.clear()
        for _ in range(20):
            self.source.run()
            self.poll()
        assert self.unanswered == set()
        assert not any(i.state == "loading" for i in self.residency.snapshot().values())

    @invariant()
    def the_budget_holds_and_the_books_balance(self) -> None:
        infos = self.residency.snapshot()
        assert 0 <= self.residency.resident_bytes <= self.residency.budget_bytes
        assert self.residency.resident_bytes == sum(i.resident_bytes for i in infos.values())

    @invariant()
    def the_snapshot_tells_the_references(self) -> None:
        infos = self.residency.snapshot()
        for digest, count in self.references.items():
            assert self.residency.references(digest) == count
            assert not count or infos[digest].references == count


ResidencyMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None
)
test_residency_keeps_its_laws_in_any_order = ResidencyMachine.TestCase
