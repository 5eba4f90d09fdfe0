"""The step loop with a scripted model: who ends how, and who is not harmed by whom."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsugiki.engine.core import EngineCore
from tsugiki.engine.request import FinishReason, Request
from tsugiki.engine.step_event import StepEvent
from tsugiki.errors import Conflict
from tsugiki.variants.loader import LoadOutcome

RequestFactory = Callable[..., Request]
CoreFactory = Callable[..., EngineCore]


def run(core: EngineCore, *requests: Request, steps: int = 3000) -> dict[str, list[StepEvent]]:
    """All events by request, until everything has ended."""
    events: dict[str, list[StepEvent]] = {}
    for request in requests:
        core.add(request)
    for _ in range(steps):
        for event in core.step():
            events.setdefault(event.request_id, []).append(event)
        if not len(core.scheduler):
            break
    return events


def last(events: dict[str, list[StepEvent]], request: Request) -> StepEvent:
    return events[request.request_id][-1]


def runner_of(core: EngineCore) -> Any:
    return core._runner


def source_of(core: EngineCore) -> Any:
    return core.variants._loads._source


def test_each_step_reports_each_new_token_once(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    request = make_request(max_tokens=4)
    (events,) = run(make_core(), request).values()
    assert [t for e in events for t in e.token_ids] == request.output_token_ids
    assert [e.finish_reason for e in events] == [None, None, None, FinishReason.LENGTH]


def test_tokens_are_the_same_with_and_without_preemption(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    def requests() -> list[Request]:
        prompts = [range(20 + i, 30 + 2 * i) for i in range(6)]
        return [
            make_request(p, max_tokens=25, digest=d) for p, d in zip(prompts, "aabbcc", strict=True)
        ]

    roomy, tight = requests(), requests()
    run(make_core(blocks=100), *roomy)
    core = make_core(blocks=14, tokens=9)
    run(core, *tight)
    assert core.scheduler.seats.num_preemptions > 3
    assert [r.output_token_ids for r in tight] == [r.output_token_ids for r in roomy]


def test_a_variant_that_raises_ends_alone(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    runner_of(core).raising = {"bad"}
    bad = [make_request(digest="bad") for _ in range(2)]
    good = [make_request(digest="good"), make_request()]
    events = run(core, *bad, *good)
    for request in bad:
        assert last(events, request).finish_reason is FinishReason.ERROR
        assert "no kernel for bad" in str(last(events, request).error)
    for request in good:
        assert last(events, request).finish_reason is FinishReason.LENGTH
    assert core.variants.snapshot()["bad"].state == "failed"
    assert core.variants.snapshot()["good"].state == "ready"


def test_a_failed_variant_is_refused_until_it_is_loaded_again(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    runner_of(core).raising = {"bad"}
    run(core, make_request(digest="bad"))
    runner_of(core).raising = set()
    late = make_request(digest="bad")
    events = run(core, late)
    assert "no kernel" in str(last(events, late).error)
    outcomes: list[LoadOutcome] = []
    core.load("bad", outcomes.append)
    again = make_request(digest="bad")
    assert last(run(core, again), again).finish_reason is FinishReason.LENGTH
    assert [outcome.error for outcome in outcomes] == [None]


def test_non_finite_logits_take_a_variant_out_of_service(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    runner_of(core).not_finite = {"nan"}
    sick, waiting = make_request(digest="nan"), make_request(digest="nan", prompt=60)
    healthy = make_request(digest="good")
    events = run(core, sick, waiting, healthy)
    for request in (sick, waiting):
        assert last(events, request).finish_reason is FinishReason.ERROR
        assert "non-finite" in str(last(events, request).error)
        assert request.output_token_ids == []
    assert last(events, healthy).finish_reason is FinishReason.LENGTH


def test_a_request_of_the_base_that_fails_takes_no_other_with_it(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    poison, nan, fine = make_request(), make_request(), make_request()
    runner_of(core).raising = {poison.request_id}
    runner_of(core).not_finite = {nan.request_id}
    events = run(core, poison, nan, fine)
    reasons = [last(events, r).finish_reason for r in (poison, nan, fine)]
    assert reasons == [FinishReason.ERROR, FinishReason.ERROR, FinishReason.LENGTH]


def test_a_variant_that_cannot_be_loaded_ends_its_requests_with_the_reason(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    source_of(core).broken = {"torn"}
    torn, fine = make_request(digest="torn"), make_request(digest="fine")
    events = run(core, torn, fine)
    assert last(events, torn).error == "the variant could not be loaded: bad bytes"
    assert last(events, fine).finish_reason is FinishReason.LENGTH


def test_a_cold_variant_holds_nobody_up_and_says_how_long_it_took(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    source_of(core).held = True
    cold, warm = make_request(digest="cold"), make_request(max_tokens=2)
    for request in (cold, warm):
        core.add(request)
    events = [event for _ in range(3) for event in core.step()]
    assert {event.request_id for event in events} == {warm.request_id}
    assert core.num_loading == 1
    source_of(core).held = False
    event = last(run(core), cold)
    assert event.finish_reason is FinishReason.LENGTH
    assert event.variant_load_ms is not None
    assert event.variant_load_ms > 0
    assert core.num_loading == 0


def test_a_running_request_keeps_its_variant_and_lets_go_at_its_end(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(budget=10)  # room for one variant
    first, second = make_request(digest="a", max_tokens=6), make_request(digest="b")
    core.add(first)
    core.step()
    core.step()
    assert core.variants.references("a") == 1
    events = run(core, second)
    assert last(events, first).finish_reason is FinishReason.LENGTH
    assert last(events, second).finish_reason is FinishReason.LENGTH
    assert core.variants.references("a") == core.variants.references("b") == 0
    assert core.variants.get("a") is None


def test_the_runner_forgets_when_a_variant_leaves_and_only_then(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(budget=20)  # room for two variants
    run(core, make_request(digest="a"), make_request(digest="b"))
    assert runner_of(core).forgotten == 0
    run(core, make_request(digest="c"))
    assert runner_of(core).forgotten == 1
    assert core.unload("c") == 10
    assert runner_of(core).forgotten == 2


def test_a_variant_is_not_unloaded_under_a_request_that_waits_for_it(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    source_of(core).held = True
    waiting = make_request(digest="a")
    core.add(waiting)
    core.step()
    with pytest.raises(Conflict, match="1 requests"):
        core.unload("a")
    source_of(core).held = False
    assert last(run(core), waiting).finish_reason is FinishReason.LENGTH
    assert core.unload("a") == 10


def test_unloading_what_is_being_loaded_tells_whoever_asked_and_leaves_nothing(
    make_core: CoreFactory,
) -> None:
    core = make_core()
    outcomes: list[LoadOutcome] = []
    core.load("a", outcomes.append)
    core.unload("a")
    for _ in range(3):
        core.step()
    assert [outcome.error for outcome in outcomes] == ["unloaded before it was ready"]
    assert core.variants.snapshot()["a"].state == "disk"


def test_each_new_request_is_a_hit_or_a_miss_of_the_device_once(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    run(core, make_request(digest="a"), make_request(digest="a"), make_request())
    run(core, make_request(digest="a"))
    device = core.variants.stats()[1]
    assert (device.hits, device.misses) == (1, 2)


def test_more_variants_than_fit_are_all_served_in_the_end(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(budget=20, seqs=3)
    requests = [make_request(digest=f"v{i}", max_tokens=3) for i in range(15)]
    events = run(core, *requests)
    assert {last(events, r).finish_reason for r in requests} == {FinishReason.LENGTH}
    assert core.variants.resident_bytes <= 20


def test_a_variant_in_constant_use_does_not_keep_another_out_for_ever(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(budget=10)  # room for one variant
    core._clock = lambda: 0.0  # type: ignore[method-assign]
    hot = [make_request(digest="hot", max_tokens=6)]
    core.add(hot[0])
    core.step()
    patient = make_request(digest="patient", max_tokens=2)
    core.add(patient)
    for now in range(60):
        core._clock = lambda now=now: now / 10  # type: ignore[misc]
        hot.append(make_request(digest="hot", max_tokens=6))
        core.add(hot[-1])
        core.step()
    assert patient.finish_reason is FinishReason.LENGTH
    run(core)
    assert {request.finish_reason for request in hot} == {FinishReason.LENGTH}


def test_an_aborted_request_ends_once_and_frees_everything(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    request = make_request(digest="a", max_tokens=50)
    core.add(request)
    core.step()
    core.step()
    core.abort(request.request_id)
    core.abort(request.request_id)
    assert [event.finish_reason for event in core.step()] == [FinishReason.ABORT]
    assert core.variants.references("a") == 0
    assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks


def test_a_request_that_slipped_past_admission_still_ends(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    (events,) = run(make_core(blocks=2), make_request(prompt=50)).values()
    assert [event.finish_reason for event in events] == [FinishReason.ERROR]


OWNERS = st.sampled_from([None, "good", "raises", "nan", "torn"])
ARRIVALS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 8), OWNERS, st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrivals=ARRIVALS, blocks=st.integers(7, 20), tokens=st.integers(1, 16))
def test_every_accepted_request_gets_exactly_one_terminal_event(
    make_core: CoreFactory,
    make_request: RequestFactory,
    arrivals: list[tuple[int, int, str | None, bool]],
    blocks: int,
    tokens: int,
) -> None:
    core = make_core(blocks=blocks, tokens=tokens, seqs=4, budget=20)
    runner_of(core).raising = {"raises"}
    runner_of(core).not_finite = {"nan"}
    source_of(core).broken = {"torn"}
    requests, events = [], list[StepEvent]()
    for prompt, max_tokens, digest, aborted in arrivals:
        request = make_request(prompt, max_tokens=max_tokens, digest=digest)
        requests.append(request)
        core.add(request)
        events += core.step()
        if aborted:
            core.abort(request.request_id)
    events += [event for group in run(core).values() for event in group]
    ends = Counter(event.request_id for event in events if event.finish_reason is not None)
    assert ends == {request.request_id: 1 for request in requests}
    assert core.scheduler.blocks.num_free == blocks
    assert all(core.variants.references(d) == 0 for d in ("good", "raises", "nan", "torn"))
