"""A request that is not done by its deadline ends there, with what it has, wherever it stands."""

from collections.abc import Callable

from tsugiki.engine.core import EngineCore
from tsugiki.engine.request import FinishReason, Request
from tsugiki.engine.step_event import StepEvent

RequestFactory = Callable[..., Request]
CoreFactory = Callable[..., EngineCore]


def at(core: EngineCore, now: float) -> list[StepEvent]:
    """One step at this time."""
    core._clock = lambda: now  # type: ignore[method-assign]
    return core.step()


def due(make: RequestFactory, deadline: float, **fields: object) -> Request:
    request = make(max_tokens=40, **fields)
    request.arrival, request.deadline = 0.0, deadline
    return request


def test_a_running_request_ends_with_the_tokens_it_has(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    request = due(make_request, 5.0, digest="a")
    core.add(request)
    for now in (1.0, 2.0, 4.9):
        assert {event.finish_reason for event in at(core, now)} <= {None}
    tokens = list(request.output_token_ids)
    (event,) = at(core, 5.0)
    assert event.finish_reason is FinishReason.TIMEOUT
    assert event.error == "its deadline passed, 5.000 s after it came"
    assert request.output_token_ids == tokens
    assert len(tokens) == 3
    assert core.variants.references("a") == 0
    assert core.scheduler.blocks.num_free == core.scheduler.blocks.num_blocks


def test_a_request_ends_while_it_waits_for_a_seat_or_a_variant(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(seqs=1)
    core.variants._loads._source.held = True  # type: ignore[attr-defined]
    cold, running = due(make_request, 3.0, digest="cold"), due(make_request, 100.0)
    behind = due(make_request, 2.0)
    for request in (running, cold, behind):
        core.add(request)
    ends = {event.request_id: now for now in range(1, 5) for event in at(core, now) if event.error}
    assert ends == {behind.request_id: 2, cold.request_id: 3}
    assert core.num_loading == 0
    assert core.scheduler.requests() == [running]


def test_what_a_timed_out_request_computed_is_still_of_use(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    core.add(due(make_request, 2.0, prompt=9))
    at(core, 1.0)
    at(core, 2.0)
    again = make_request(prompt=9)
    core.add(again)
    at(core, 3.0)
    assert again.num_cached_tokens == 8


def test_a_request_that_is_done_has_no_deadline_any_more(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    request = due(make_request, 2.0)
    core.add(request)
    at(core, 1.0)
    core.abort(request.request_id)
    assert [event.finish_reason for event in at(core, 1.5)] == [FinishReason.ABORT]
    assert at(core, 3.0) == []
