"""The protocol every server is measured by: `tsugiki bench`, as a library.

Streaming /v1/completions, 128 random token ids + 64 tokens, ignore_eos, closed loop, warmed, at
least 4 requests a slot. Owns: these numbers and what of a measurement is written down.
"""

import asyncio
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tsugiki.bench.arrivals import ClosedLoop, OpenLoop
from tsugiki.bench.client import LoadClient
from tsugiki.bench.session import Measurement, measure
from tsugiki.bench.statistics import Summary, summarise
from tsugiki.bench.workload import TokenPrompts, Workload

TURNS = 4
LEAST_REQUESTS = 8  # one slot alone: more turns, for a steadier number


class RequestsFailed(RuntimeError):
    """A measurement with failed requests is none."""


def closed_loop(url: str, models: Sequence[str], slots: int, label: str) -> dict[str, Any]:
    """One cell: slot i asks model i. `label` seeds the prompts: no two cells share any.

    Raises:
        RequestsFailed: at least one.
    """
    workload = Workload(models, seed=seed_of(label))
    arrivals = ClosedLoop(slots, max(TURNS, LEAST_REQUESTS // slots))
    return checked(summarise(run(url, workload, arrivals, max(slots, len(models)))))


def run(
    url: str,
    workload: Workload,
    arrivals: ClosedLoop | OpenLoop,
    warm_up: int = 0,
    api_key: str | None = None,
) -> Measurement:
    """One measurement in an event loop of its own."""

    async def session() -> Measurement:
        async with LoadClient(url, api_key=api_key, timeout=1800) as client:
            return await measure(client, workload, arrivals, warm_up)

    return asyncio.run(session())


def checked(summary: Summary) -> dict[str, Any]:
    """A summary as plain data.

    Raises:
        RequestsFailed: requests failed.
    """
    if summary.failed:
        raise RequestsFailed(f"{summary.failed} requests failed: {dict(summary.errors)}")
    return asdict(summary)


def seed_of(label: str) -> int:
    """A number for a text: the same in every run."""
    return zlib.crc32(label.encode())


def prompt(length: int, label: str, prefix: Sequence[int] = ()) -> list[int]:
    """Random token ids behind a prefix."""
    return [*prefix, *TokenPrompts((length, length)).draw(random.Random(label))]
