"""What a server process holds in memory, as the kernel counts it. Linux only."""

import asyncio
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

SETTLE_SECONDS = 3.0
READINGS = 5


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process: /proc/PID/smaps_rollup."""

    rss: int
    pss: int
    anonymous: int


def memory_of(pid: int) -> Memory:
    """Now."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    found = (kilobytes[key] * 1024 for key in ("Rss", "Pss", "Anonymous"))
    return Memory(*found)


async def settled_memory(pid: int) -> Memory:
    """The median of a few readings of an idle process."""
    readings = []
    for _ in range(READINGS):
        await asyncio.sleep(SETTLE_SECONDS / READINGS)
        readings.append(asdict(memory_of(pid)))
    return Memory(**{key: int(statistics.median(r[key] for r in readings)) for key in readings[0]})


async def resident(http: httpx.AsyncClient) -> tuple[int, int]:
    """(variants in device memory, their bytes), by the server's own metrics."""
    metrics = (await http.get("/metrics")).text
    variants = value_of(metrics, "tsugiki_resident_variants")
    return int(variants), int(value_of(metrics, "tsugiki_resident_variant_bytes"))


def value_of(metrics: str, series: str) -> float:
    """One series of a /metrics text, its labels included in the name.

    Raises:
        KeyError: there is none.
    """
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    raise KeyError(f"/metrics has no {series}")
