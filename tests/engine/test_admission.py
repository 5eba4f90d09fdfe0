"""Who is refused when the queue is full, and the Retry-After computed from what was measured."""

import pytest

from tsugiki.engine.admission import UNKNOWN_RETRY_SECONDS, Admission, FinishRate, Queue
from tsugiki.engine.client import GenerationSpec
from tsugiki.engine.request import SamplingParams, VariantRef
from tsugiki.errors import Overloaded


def test_the_time_to_come_back_follows_the_measured_rate() -> None:
    now = [100.0]
    rate = FinishRate(clock=lambda: now[0])
    assert rate.seconds_for(10) == UNKNOWN_RETRY_SECONDS
    for _ in range(20):
        now[0] += 0.5
        rate.finished()
    assert rate.seconds_for(10) == 5.0
    assert rate.seconds_for(1) == 1.0
    assert rate.seconds_for(10_000) == 120.0


def test_what_finished_long_ago_does_not_count() -> None:
    now = [0.0]
    rate = FinishRate(clock=lambda: now[0])
    for _ in range(30):
        rate.finished()
    now[0] = 25.0
    rate.finished()
    now[0] = 40.0
    assert rate.seconds_for(2) == 60.0


def admission(most: int) -> Admission:
    """Its clock stands at 10 s; 5 requests finished."""
    now = [0.0]
    rate = FinishRate(clock=lambda: now[0])
    now[0] = 10.0
    for _ in range(5):
        rate.finished()
    return Admission(100, most, rate)


SPEC = GenerationSpec("r", VariantRef("base", None), (1, 2), SamplingParams())


def test_a_full_queue_refuses_with_the_time_that_it_takes() -> None:
    with pytest.raises(Overloaded, match="8 requests are open") as refusal:
        admission(8).check(SPEC, 10, Queue(all=8, own=8, tenants=1))
    assert refusal.value.retry_after == 16.0
    admission(8).check(SPEC, 10, Queue(all=7, own=7, tenants=1))


def test_who_fills_the_queue_is_refused_and_another_is_not() -> None:
    limits = admission(8)
    with pytest.raises(Overloaded):
        limits.check(SPEC, 10, Queue(all=9, own=8, tenants=2))
    for own in range(4):
        limits.check(SPEC, 10, Queue(all=8 + own, own=own, tenants=2))
    with pytest.raises(Overloaded):
        limits.check(SPEC, 10, Queue(all=12, own=4, tenants=2))
