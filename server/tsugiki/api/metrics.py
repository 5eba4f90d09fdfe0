"""Prometheus metrics of one server, in a registry of their own.

Owns: names, labels, buckets. Per-variant series stay bounded: names beyond the first
`MAX_VARIANT_LABELS` are counted together. Does not know HTTP routes.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tsugiki.api.record import RequestRecord
from tsugiki.engine.client import EngineClient, EngineStats

MAX_VARIANT_LABELS = 500
OTHER_VARIANTS = "_other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_GAUGES = {
    "waiting": "requests in the queue",
    "running": "requests in the batch",
    "loading": "requests that wait for their variant to load",
    "kv_blocks_total": "blocks of the KV cache",
    "kv_blocks_free": "blocks of the KV cache that are free",
    "last_batch_rows": "token rows of the last step",
    "resident_variants": "variants in device memory",
    "resident_variant_bytes": "bytes of variants in device memory",
}
_COUNTERS = {"steps": "steps of the engine", "preemptions": "requests that were preempted"}


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
        self._gaps = self._histogram(
            "tsugiki_inter_token_seconds", "between tokens of one request", _TOKEN_SECONDS
        )
        self._registry.register(_EngineCollector(engine))

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
        for gap in record.token_gaps:
            self._gaps.observe(gap)

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


class _EngineCollector(Collector):
    """The engine's own counters, read at scrape time."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing: names need no engine to be registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One snapshot."""
        stats = self._engine.stats()
        for name, help in _GAUGES.items():
            yield GaugeMetricFamily(f"tsugiki_{name}", help, value=getattr(stats, name))
        for name, help in _COUNTERS.items():
            yield CounterMetricFamily(f"tsugiki_{name}", help, value=getattr(stats, name))
        yield _info(stats)
        yield from self._residency()

    def _residency(self) -> Iterator[Metric]:
        versions = self._engine.variants()
        states = GaugeMetricFamily("tsugiki_variant_versions", "by state", labels=["state"])
        for state in ("disk", "loading", "host", "ready", "failed"):
            states.add_metric([state], sum(version.state == state for version in versions))
        yield states
        resident = GaugeMetricFamily(
            "tsugiki_variant_bytes", "resident bytes of active variants", labels=["variant"]
        )
        active = [version for version in versions if version.active and version.resident_bytes]
        for version in active[:MAX_VARIANT_LABELS]:
            resident.add_metric([version.name], version.resident_bytes)
        yield resident


def _info(stats: EngineStats) -> Metric:
    values = {"kernels": stats.kernels, "device": stats.device, "dtype": stats.dtype}
    return InfoMetricFamily("tsugiki_build", "how the model is computed", value=values)
