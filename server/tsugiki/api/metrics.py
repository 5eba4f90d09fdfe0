"""Prometheus metrics of one server, in a registry of their own.

Owns: what is counted of requests and uploads: names, labels, buckets. Per-variant series stay
bounded: names beyond the first `MAX_VARIANT_LABELS` are counted together. What the engine counts is
read from it when scraped (engine_metrics.py). Does not know HTTP routes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tsugiki.api.engine_metrics import MAX_VARIANT_LABELS, EngineCollector
from tsugiki.api.record import RequestRecord
from tsugiki.engine.client import EngineClient

OTHER_VARIANTS = "_other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class TokenGaps(Collector):
    """A histogram of the seconds between tokens: the one series that counts every token, for which
    the library's own takes longer than the token's way to its client."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_TOKEN_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: Sequence[float]) -> None:
        """Count them."""
        for value in seconds:
            self._counts[bisect_left(_TOKEN_SECONDS, value)] += 1
        self._sum += sum(seconds)

    def describe(self) -> list[Metric]:
        """Nothing: the name needs no value to be registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The counts so far, cumulative over the buckets as Prometheus wants them."""
        name, help = "tsugiki_inter_token_seconds", "between tokens of one request"
        bounds = [*map(str, _TOKEN_SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(name, help, buckets=buckets, sum_value=self._sum)


class Metrics:
    """Counts ended requests; asks the engine for the rest when scraped."""

    def __init__(self, engine: EngineClient) -> None:
        self._registry = CollectorRegistry()
        self._known: set[str] = set()
        self._requests = Counter(
            "tsugiki_requests", "HTTP requests ended", ["method", "status"], registry=self._registry
        )
        self._prompt_tokens = self._per_variant("tsugiki_prompt_tokens", "prompt tokens")
        self._completion_tokens = self._per_variant("tsugiki_completion_tokens", "tokens generated")
        self._generations = self._per_variant("tsugiki_generations", "generation requests ended")
        self._seconds = self._histogram("tsugiki_request_seconds", "generation requests", _SECONDS)
        self._ttft = self._histogram(
            "tsugiki_time_to_first_token_seconds", "arrival to first token", _SECONDS
        )
        self._gaps = TokenGaps()
        self._registry.register(self._gaps)
        self._uploads = Counter(
            "tsugiki_uploads", "uploads ended", ["outcome"], registry=self._registry
        )
        self._registry.register(EngineCollector(engine))

    def observe(self, record: RequestRecord, ended: float) -> None:
        """Count one ended request."""
        self._requests.labels(record.method, record.error or str(record.status)).inc()
        if record.variant is None or not record.prompt_tokens:
            return
        name = self._label(record.variant.name)
        self._generations.labels(name).inc()
        self._prompt_tokens.labels(name).inc(record.prompt_tokens)
        self._completion_tokens.labels(name).inc(record.completion_tokens)
        self._seconds.observe(ended - record.started)
        if record.first_token is not None:
            self._ttft.observe(record.first_token - record.started)
        self._gaps.observe(record.token_gaps)

    def upload(self, outcome: str) -> None:
        """Count one upload: created, unchanged, interrupted, or the code of its error."""
        self._uploads.labels(outcome).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def _per_variant(self, name: str, help: str) -> Counter:
        return Counter(name, help, ["variant"], registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help, buckets=buckets, registry=self._registry)

    def _label(self, variant: str) -> str:
        if variant not in self._known and len(self._known) >= MAX_VARIANT_LABELS:
            return OTHER_VARIANTS
        self._known.add(variant)
        return variant
