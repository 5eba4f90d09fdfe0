"""Retry-After is computed from what was measured."""

from tsugiki.engine.admission import UNKNOWN_RETRY_SECONDS, FinishRate


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
