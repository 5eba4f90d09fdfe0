"""Whose variant is fetched, stays, or makes room: the policy alone, over a real residency."""

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.variants.stepped_source import SteppedSource
from tsugiki.engine.core import EngineCore
from tsugiki.engine.request import Request
from tsugiki.engine.variant_turns import VariantTurns
from tsugiki.variants.residency import Residency

RequestFactory = Callable[..., Request]
CoreFactory = Callable[..., EngineCore]


class Scene:
    """Turns over a device of `room` variants, a loader that is never slow, and a clock by hand."""

    def __init__(self, room: int, load_ahead: int = 4) -> None:
        self.now = 0.0
        self.source = SteppedSource(dict.fromkeys("abcdefgh", 10))
        self.residency = Residency(self.source, 10 * room)
        self.turns = VariantTurns(
            self.residency, lambda: self.now, load_ahead=load_ahead, patience=1.0
        )

    def wait(self, *digests: str) -> None:
        for digest in digests:
            self.turns.wait(digest, f"waits for {digest} since {self.now}")

    def run(self, request: Request) -> None:
        digest = str(request.variant.digest)
        assert self.turns.may_run(digest)
        self.turns.run(request)
        self.residency.retain(digest)

    def end(self, request: Request) -> None:
        digest = str(request.variant.digest)
        self.turns.leave(digest, request.request_id)
        self.residency.release(digest)

    def advance(self, seconds: float = 0.0, times: int = 3) -> None:
        self.now += seconds
        for _ in range(times):
            self.turns.advance()
            self.source.run()

    def running(self, make: RequestFactory, digest: str, max_tokens: int = 4) -> Request:
        """A request that runs from now on."""
        request = make(digest=digest, max_tokens=max_tokens)
        self.turns.wait(digest, request.request_id)
        self.advance()
        self.run(request)
        return request


def test_a_variant_is_fetched_before_anybody_asks_whether_it_is_there() -> None:
    scene = Scene(room=2)
    scene.wait("a")
    scene.turns.advance()
    assert scene.source.submitted["a"] == 1
    assert scene.turns.num_cold == 1
    scene.advance()
    assert scene.turns.may_run("a")
    assert scene.turns.num_cold == 0


def test_a_variant_that_nobody_waits_for_any_more_gives_up_its_place_in_line() -> None:
    scene = Scene(room=8)
    for digest in "abcd":
        scene.turns.wait(digest, "somebody")
    scene.turns.advance()
    assert set(scene.source.submitted) == {"a", "b"}, "two at a time"
    scene.turns.leave("c", "somebody")
    scene.turns.leave("a", "somebody")
    scene.advance()
    assert set(scene.source.submitted) == {"a", "b", "d"}
    assert scene.turns.may_run("a"), "what was under way came all the same"
    assert scene.residency.snapshot()["c"].state == "disk"


def test_the_oldest_are_fetched_first_and_only_so_many_ahead() -> None:
    scene = Scene(room=8, load_ahead=1)
    for digest in "cab":
        scene.now += 1
        scene.wait(digest)
    scene.turns.advance()
    assert set(scene.source.submitted) == {"c"}
    scene.source.run()
    scene.turns.advance()
    scene.turns.advance()
    assert set(scene.source.submitted) == {"c", "a"}


def test_what_was_loaded_for_a_request_stays_until_it_runs() -> None:
    scene = Scene(room=1)
    scene.wait("a")
    scene.advance()
    scene.wait("b", "c")
    scene.advance(0.5)
    assert scene.turns.may_run("a")
    assert not scene.turns.may_run("b")


def test_idle_variants_make_room_without_anybody_having_to_wait_long() -> None:
    scene = Scene(room=1)
    scene.wait("a")
    scene.advance()
    scene.turns.leave("a", "waits for a since 0.0")
    scene.wait("b")
    scene.advance()
    assert scene.turns.may_run("b")


def test_after_some_patience_the_variant_that_is_idle_soonest_yields(
    make_request: RequestFactory,
) -> None:
    scene = Scene(room=2)
    scene.running(make_request, "a", max_tokens=100)
    short = scene.running(make_request, "b", max_tokens=5)
    scene.wait("c")
    scene.advance(0.9)
    scene.wait("a", "b")
    assert scene.turns.may_run("a")
    assert scene.turns.may_run("b")
    scene.advance(0.2)
    assert scene.turns.may_run("a"), "others are not held up"
    assert not scene.turns.may_run("b"), "it yields to c, who waited longest"
    scene.end(short)
    scene.advance()
    assert scene.turns.may_run("c")
    assert not scene.turns.may_run("b"), "it is cold now and waits for its own turn"


def test_who_waited_longest_never_yields(make_request: RequestFactory) -> None:
    scene = Scene(room=1)
    scene.running(make_request, "a")
    scene.now += 0.1
    scene.turns.wait("a", "older")
    scene.now += 0.1
    scene.wait("b")
    scene.advance(5.0)
    assert scene.turns.may_run("a")


def test_a_variant_keeps_the_device_for_a_while_once_it_was_loaded(
    make_request: RequestFactory,
) -> None:
    scene = Scene(room=1)
    first = scene.running(make_request, "a")
    scene.wait("b")
    scene.now += 0.1
    scene.wait("c")
    scene.advance(2.0)
    scene.end(first)
    scene.advance()
    scene.running(make_request, "b")
    scene.turns.leave("b", "waits for b since 0.0")
    scene.advance(0.9)
    assert scene.turns.may_run("b"), "c has waited for long, but b came just now"
    scene.advance(0.2)
    assert not scene.turns.may_run("b")


def test_a_pinned_variant_does_not_yield(make_request: RequestFactory) -> None:
    scene = Scene(room=2)
    scene.running(make_request, "a", max_tokens=1)
    scene.running(make_request, "b", max_tokens=50)
    scene.residency.pin("a", True)
    scene.wait("c")
    scene.advance(2.0)
    assert scene.turns.may_run("a")
    assert not scene.turns.may_run("b")


def test_a_load_that_nobody_requests_for_gets_its_turn_too(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    now = 0.0
    core = make_core(budget=10)
    core._clock = lambda: now  # type: ignore[method-assign]
    outcomes: list[str] = []
    for step in range(60):
        core.add(make_request(digest="hot", max_tokens=6))
        if step == 5:
            core.load("wanted", lambda outcome: outcomes.append(outcome.digest))
        core.step()
        now += 0.1
    assert outcomes == ["wanted"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=40),
    room=st.integers(1, 3),
    seats=st.integers(1, 4),
)
def test_with_more_hot_variants_than_fit_everybody_is_served_in_bounded_time(
    make_core: CoreFactory,
    make_request: RequestFactory,
    arrivals: list[tuple[str, int]],
    room: int,
    seats: int,
) -> None:
    now = 0.0
    core = make_core(budget=10 * room, seqs=seats, blocks=200)
    core._clock = lambda: now  # type: ignore[method-assign]
    requests: list[Request] = []
    work = 0
    for digest, max_tokens in arrivals:
        requests.append(make_request(digest=digest, max_tokens=max_tokens))
        core.add(requests[-1])
        core.step()
        now += 0.25
        work += max_tokens + 20  # its tokens, and at most two patiences of 1 s for its variant
    for _ in range(work):
        core.step()
        now += 0.25
    assert all(request.finish_reason is not None for request in requests)
    assert core.variants.resident_bytes <= 10 * room
