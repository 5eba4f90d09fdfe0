"""What the engine counts, as Prometheus families: one snapshot per scrape.

Owns: names and labels of the engine's metrics. Does not know requests (metrics.py).
"""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from tsugiki.engine.client import EngineClient, EngineStats, LoadTotals, RoomInfo, TierInfo
from tsugiki.engine.variant_info import VariantInfo

MAX_VARIANT_LABELS = 500
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
_COUNTERS = {
    "steps": "steps of the engine",
    "preemptions": "requests that were preempted",
    "drafted_tokens": "tokens that prompt lookup drafted",
    "accepted_tokens": "drafted tokens that were right",
}
_PREFIX_CACHE = {"queries": "prompt tokens looked up", "hits": "prompt tokens found"}
_TIER_GAUGES = {
    "budget_bytes": "bytes that variants may take in a tier",
    "bytes": "bytes that variants take in a tier",
    "shared_bytes": "of these, held once for several variants",
    "variants": "variants in a tier",
}
_TIER_COUNTERS = {
    "hits": "requests whose variant was in a tier",
    "misses": "requests whose variant was not in a tier",
    "evictions": "variants dropped from a tier for others",
}
_ROOM_GAUGES = {
    "bytes": ("nbytes", "bytes of the buffer that variants lie in"),
    "free_bytes": ("free_bytes", "bytes of it that are free"),
    "largest_free_bytes": ("largest_free_bytes", "bytes of its longest free piece"),
    "beside_bytes": ("beside_bytes", "bytes of variants that found no room in it, yet"),
}
_ROOM_COUNTERS = {
    "moves": ("moves", "extents that were moved in it"),
    "moved_bytes": ("moved_bytes", "bytes that were moved in it"),
}
_LOAD_PARTS = ("read", "verify", "stage")


class EngineCollector(Collector):
    """The engine's own counters, read at scrape time."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing: names need no engine to be registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One snapshot."""
        stats, versions = self._engine.stats(), self._engine.variants()
        for name, help in _GAUGES.items():
            yield GaugeMetricFamily(f"tsugiki_{name}", help, value=getattr(stats, name))
        for name, help in _COUNTERS.items():
            yield CounterMetricFamily(f"tsugiki_{name}", help, value=getattr(stats, name))
        for name, help in _PREFIX_CACHE.items():
            value = getattr(stats, f"prefix_cache_{name}")
            yield CounterMetricFamily(f"tsugiki_prefix_cache_{name}_tokens", help, value=value)
        yield _info(stats)
        yield from _tiers(stats.tiers)
        yield from _room(stats.room)
        yield from _loads(stats.loads)
        yield from _variants(versions)


def _tiers(tiers: tuple[TierInfo, ...]) -> Iterator[Metric]:
    for name, help in _TIER_GAUGES.items():
        gauge = GaugeMetricFamily(f"tsugiki_variant_tier_{name}", help, labels=["tier"])
        for tier in tiers:
            gauge.add_metric([tier.name], getattr(tier, name))
        yield gauge
    for name, help in _TIER_COUNTERS.items():
        counter = CounterMetricFamily(f"tsugiki_variant_tier_{name}", help, labels=["tier"])
        for tier in tiers:
            counter.add_metric([tier.name], getattr(tier, name))
        yield counter


def _room(room: RoomInfo | None) -> Iterator[Metric]:
    if room is None:
        return
    for name, (field, help) in _ROOM_GAUGES.items():
        yield GaugeMetricFamily(f"tsugiki_variant_room_{name}", help, value=getattr(room, field))
    for name, (field, help) in _ROOM_COUNTERS.items():
        yield CounterMetricFamily(f"tsugiki_variant_room_{name}", help, value=getattr(room, field))


def _loads(loads: LoadTotals) -> Iterator[Metric]:
    yield CounterMetricFamily("tsugiki_variant_loads", "variants loaded", value=loads.count)
    seconds = CounterMetricFamily(
        "tsugiki_variant_load_seconds", "spent in each part of loads", labels=["part"]
    )
    for part in _LOAD_PARTS:
        seconds.add_metric([part], getattr(loads, part))
    yield seconds


def _variants(versions: list[VariantInfo]) -> Iterator[Metric]:
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
    canaries = GaugeMetricFamily(
        "tsugiki_variant_canary_percent", "users who get a canary", labels=["variant", "digest"]
    )
    running = [version for version in versions if version.canary_percent]
    for version in running[:MAX_VARIANT_LABELS]:
        canaries.add_metric([version.name, version.digest], version.canary_percent)
    yield canaries


def _info(stats: EngineStats) -> Metric:
    values = {"kernels": stats.kernels, "device": stats.device, "dtype": stats.dtype}
    return InfoMetricFamily("tsugiki_build", "how the model is computed", value=values)
