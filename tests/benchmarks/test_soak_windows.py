"""What the soak compares: windows under the same load."""

import pytest

from benchmarks.soak import PeriodicArrivals, judged, ratio_interval, window
from tsugiki.bench.outcome import Outcome


def test_every_window_has_the_arrivals_of_the_first() -> None:
    times = list(PeriodicArrivals(5.0, None, 25.0, period=10.0).times())
    first = [moment for moment in times if moment < 10]
    second = [moment - 10 for moment in times if 10 <= moment < 20]
    assert second == pytest.approx(first)
    assert times == sorted(times)
    assert times[-1] < 25


def outcome(begin: float, gap: float) -> Outcome:
    moments = (begin + 0.1, begin + 0.1 + gap)
    return Outcome("base", begin, begin, moments[-1], moments, tokens=2)


def test_a_window_leaves_its_first_tenth_out() -> None:
    outcomes = [outcome(100.5, 9.0), outcome(102.0, 0.02), outcome(109.0, 0.04)]
    seen = window(outcomes, [(100.1, 10**9), (103.0, 1000), (105.0, 3000)], 100.0, 110.0)
    assert seen.requests == 2
    assert seen.token_seconds == pytest.approx([0.02, 0.04])
    assert seen.rss == 2000


def test_each_bound_is_judged_for_itself() -> None:
    samples = [(moment, 1000 if moment < 20 else 1100) for moment in (5.0, 15.0, 25.0)]
    outcomes = [outcome(begin, 0.03) for begin in (5.0, 15.0, 25.0)]
    windows = [window(outcomes, samples, begin, begin + 10) for begin in (0.0, 10.0, 20.0)]
    result = judged(windows, failed=1, left_over={"running": 0, "kv_blocks": 2})
    assert result["met"] == {
        "no error": False,
        "inter-token latency": True,
        "memory": False,
        "nothing left over": False,
    }


def test_the_interval_of_equal_samples_holds_one() -> None:
    low, high = ratio_interval([1.0, 2.0, 3.0] * 20, [1.0, 2.0, 3.0] * 20)
    assert low < 1 < high
