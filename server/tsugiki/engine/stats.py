"""The engine's counters in one snapshot.

Owns: where each of them is read. Lives on the event loop; single integers are read while the engine
thread runs. Does not know how they are shown.
"""

from dataclasses import asdict

from tsugiki.engine.client import EngineStats, Machine, RoomInfo
from tsugiki.engine.core import EngineCore
from tsugiki.engine.variant_view import VariantView


def engine_stats(core: EngineCore, view: VariantView, machine: Machine) -> EngineStats:
    """See EngineClient.stats."""
    scheduler, counters = core.scheduler, core.counters
    running, loading = len(scheduler.running), core.num_loading
    tiers = view.tiers()
    device = next(tier for tier in tiers if tier.name == "device")
    return EngineStats(
        waiting=max(0, len(scheduler) - running - loading),
        running=running,
        loading=loading,
        kv_blocks_total=scheduler.blocks.num_blocks,
        kv_blocks_free=scheduler.blocks.num_free,
        steps=counters.steps,
        preemptions=scheduler.seats.num_preemptions,
        last_batch_rows=counters.last_batch_rows,
        resident_variants=device.variants,
        resident_variant_bytes=device.bytes,
        kernels=machine.kernels,
        kernels_fallback=machine.kernels_fallback,
        device=machine.device,
        dtype=machine.dtype,
        threads=machine.threads,
        tiers=tiers,
        room=None if core.room is None else RoomInfo(**asdict(core.room.stats())),
        loads=view.loads(),
        prefix_cache_queries=scheduler.seats.prefix_queries,
        prefix_cache_hits=scheduler.seats.prefix_hits,
        drafted_tokens=scheduler.lookup.num_drafted if scheduler.lookup else 0,
        accepted_tokens=scheduler.lookup.num_accepted if scheduler.lookup else 0,
    )
