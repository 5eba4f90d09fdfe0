"""How the numbers are defined."""

import pytest

from tsugiki.bench.outcome import Outcome
from tsugiki.bench.report import table
from tsugiki.bench.session import Measurement
from tsugiki.bench.statistics import Distribution, Slo, summarise


def outcome(begin: float, *moments: float, **changed: object) -> Outcome:
    fields = {
        "model": "base", "begin": begin, "sent": begin, "end": moments[-1] if moments else begin,
        "moments": moments, "tokens": len(moments), "prompt_tokens": 10, **changed,
    }  # fmt: skip
    return Outcome(**fields)  # type: ignore[arg-type]


FAST = outcome(0.0, 0.1, 0.2, 0.3)
SLOW = outcome(0.0, 0.5, 1.0, 1.5)
FAILED = outcome(0.0, error="http 429 overloaded")
LEFT = outcome(0.0, 0.1, left=True)


def test_percentiles_interpolate() -> None:
    assert Distribution.of([10.0, 20.0]) == Distribution(2, 15.0, 15.0, 19.0, 19.5, 19.9)
    assert Distribution.of([]) is None


def test_latencies_are_of_complete_answers_alone() -> None:
    summary = summarise(Measurement([FAST, SLOW, FAILED, LEFT], 2.0, 0.1))
    assert (summary.complete, summary.failed, summary.left) == (2, 1, 1)
    assert summary.ttft is not None
    assert (summary.ttft.count, summary.ttft.mean) == (2, pytest.approx(300.0))
    assert summary.itl is not None
    assert (summary.itl.count, summary.itl.mean) == (4, pytest.approx(300.0))
    assert summary.latency is not None
    assert summary.latency.mean == pytest.approx(900.0)


def test_throughput_counts_every_token_that_came_and_complete_requests() -> None:
    summary = summarise(Measurement([FAST, SLOW, FAILED, LEFT], 2.0, 0.1))
    assert summary.tokens_per_second == 3.5
    assert summary.requests_per_second == 1.0
    assert summary.client_core == pytest.approx(0.05)
    assert summary.client_token_us == pytest.approx(1e5 / 7)


def test_goodput_is_of_all_requests_but_those_that_left() -> None:
    good = summarise(Measurement([FAST, SLOW, FAILED, LEFT], 2.0, 0.1), Slo(ttft_ms=200)).goodput
    assert good is not None
    assert (good.requests_per_second, good.share) == (0.5, pytest.approx(1 / 3))
    assert Slo(itl_ms=400).kept(FAST)
    assert not Slo(itl_ms=400).kept(SLOW)


def test_latency_is_counted_from_when_a_request_was_due() -> None:
    late = outcome(0.0, 0.3, 0.4, sent=0.2)
    summary = summarise(Measurement([late], 1.0, 0.0))
    assert summary.ttft is not None
    assert summary.ttft.mean == pytest.approx(300.0)
    assert summary.late is not None
    assert summary.late.mean == pytest.approx(200.0)


def test_the_table_names_errors_and_does_without_answers() -> None:
    text = table(summarise(Measurement([FAILED, FAILED], 1.0, 0.0), Slo(ttft_ms=200)))
    assert "2 x http 429 overloaded" in text
    assert "0.0% of the requests within time to first token 200 ms" in text
