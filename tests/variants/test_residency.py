"""The laws of the device's tier by example, under a step-by-step loader."""

import pytest

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


def test_what_is_kept_for_somebody_is_not_evicted_in_this_poll() -> None:
    residency, source = tier(a=40, b=40, c=40)
    load(residency, source, "a", "b")
    residency.request("c")
    source.run()
    assert residency.poll(keep={"a", "b"}) == []
    assert residency.without_room() == ["c"]
    assert [o.digest for o in residency.poll(keep={"a"})] == ["c"]
    assert residency.take_evicted() == ["b"]
    assert residency.take_evicted() == []


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


def test_who_asks_after_an_unload_is_not_answered_with_the_cancellation() -> None:
    residency, source = tier(a=40, b=40, c=40)
    for digest in "abc":
        residency.request(digest)
    residency.unload("c")  # still queued: its answer is ready
    residency.request("c")
    source.run()
    outcomes = residency.poll() + (source.run() or residency.poll())
    assert {outcome.digest: outcome.error for outcome in outcomes}["c"] is None


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
