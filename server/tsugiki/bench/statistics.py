"""From outcomes to numbers: latencies, throughput, goodput, errors by kind.

Owns: `Summary` and how each number is defined. Does not know where outcomes come from or how they
are shown. Latencies are of complete answers alone, in milliseconds.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsugiki.bench.outcome import Outcome
from tsugiki.bench.session import Measurement

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles (linear interpolation) of `count` values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution | None":
        """None of no values."""
        if not values:
            return None
        percentiles = (float(value) for value in np.percentile(values, PERCENTILES))
        return cls(len(values), float(np.mean(values)), *percentiles)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good answer keeps; None: any. `itl_ms` bounds a request's mean inter-token time."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def kept(self, outcome: Outcome) -> bool:
        """Whether a complete answer was good."""
        slow = self.ttft_ms is not None and 1000 * outcome.ttft > self.ttft_ms
        halting = self.itl_ms is not None and 1000 * outcome.token_seconds > self.itl_ms
        return not (slow or halting)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Complete answers that kept the SLO."""

    slo: Slo
    requests_per_second: float
    share: float  # of all requests, failed ones included, those that left on purpose not


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one measurement.

    Attributes:
        complete, failed, left: requests; `left` hung up on purpose.
        tokens_per_second: generated, over the whole time; partial answers count what came.
        ttft, itl, tpot, latency: time to first token; gaps between pieces of one answer, of all
            answers together; mean gap of each answer; time to the end. Milliseconds.
        late: how long after it was due a request was sent: large means an overloaded client.
        errors: kind -> requests.
        client_core: share of one core that the client took; `client_token_us` for each token.
    """

    complete: int
    failed: int
    left: int
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    cached_tokens: int
    ttft: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    latency: Distribution | None
    late: Distribution | None
    goodput: Goodput | None
    errors: Mapping[str, int]
    client_core: float
    client_token_us: float


def summarise(measurement: Measurement, slo: Slo | None = None) -> Summary:
    """All numbers; goodput only with an SLO."""
    outcomes, seconds = measurement.outcomes, measurement.seconds
    complete = [outcome for outcome in outcomes if outcome.complete]
    tokens = sum(outcome.tokens for outcome in outcomes)
    errors = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    return Summary(
        complete=len(complete),
        failed=errors.total(),
        left=len(outcomes) - len(complete) - errors.total(),
        seconds=seconds,
        requests_per_second=len(complete) / seconds,
        tokens_per_second=tokens / seconds,
        prompt_tokens_per_second=sum(outcome.prompt_tokens for outcome in outcomes) / seconds,
        cached_tokens=sum(outcome.cached_tokens for outcome in outcomes),
        ttft=_milliseconds(complete, lambda outcome: [outcome.ttft]),
        itl=_milliseconds(complete, lambda outcome: outcome.gaps),
        tpot=_milliseconds(complete, lambda outcome: [outcome.token_seconds]),
        latency=_milliseconds(complete, lambda outcome: [outcome.latency]),
        late=_milliseconds(outcomes, lambda outcome: [outcome.sent - outcome.begin]),
        goodput=None if slo is None else _goodput(outcomes, slo, seconds),
        errors=dict(errors.most_common()),
        client_core=measurement.client_seconds / seconds,
        client_token_us=1e6 * measurement.client_seconds / max(tokens, 1),
    )


def _milliseconds(
    outcomes: Iterable[Outcome], values: Callable[[Outcome], Sequence[float]]
) -> Distribution | None:
    return Distribution.of([1000 * value for outcome in outcomes for value in values(outcome)])


def _goodput(outcomes: Sequence[Outcome], slo: Slo, seconds: float) -> Goodput:
    asked = [outcome for outcome in outcomes if not outcome.left]
    good = sum(outcome.complete and slo.kept(outcome) for outcome in asked)
    return Goodput(slo, good / seconds, good / max(len(asked), 1))
