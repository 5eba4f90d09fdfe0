"""Half an hour at 90 % of what the server can do, with clients that hang up: what changes?

The capacity is measured first (closed loop, as many slots as a step has rows). Then requests arrive
at 90 % of it (Poisson), for the base and eight variants (Zipf), one in ten of them from a client
that hangs up somewhere in the answer. The arrivals repeat every window of 5 minutes, so that two
windows see the same load and their inter-token latencies can be compared to a few percent.

Wanted: no error; the last window's mean inter-token latency within 5 % of the first one's (95 %
bootstrap interval over requests reported); memory of the server in the last window at most 1 % over
the second one's; afterwards nothing running, nothing waiting, no KV block in use or held by nobody.
--minutes 30 takes 33 minutes. Run it alone on the machine.

    python -m benchmarks.soak --base demo --variants examples/variants
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.churn.memory import memory_of, value_of
from benchmarks.results import RESAMPLES, save
from benchmarks.served import multiplied
from benchmarks.server import server_process
from tsugiki.bench.arrivals import ClosedLoop, OpenLoop
from tsugiki.bench.client import LoadClient
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.session import measure
from tsugiki.bench.statistics import summarise
from tsugiki.bench.workload import Workload
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

SHARE, DISCONNECT, VARIANTS = 0.9, 0.1, 8
WINDOW_MINUTES, WINDOWS = 5.0, 4  # a shorter run has shorter windows, but at least so many
LATENCY_TOLERANCE, MEMORY_TOLERANCE = 0.05, 0.01
SAMPLE_SECONDS, SETTLE_SECONDS = 5.0, 5.0


@dataclass(frozen=True, slots=True)
class PeriodicArrivals(OpenLoop):
    """Poisson arrivals that repeat every `period` seconds."""

    period: float = 300.0

    def times(self) -> Iterator[float]:
        """Seconds from the start at which requests are due."""
        pattern = list(OpenLoop(self.rate, None, self.period, self.seed).times())
        for number in count():
            for moment in pattern:
                due = number * self.period + moment
                if self.seconds is not None and due >= self.seconds:
                    return
                yield due


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one stretch of time, its first tenth left out: queues fill there."""

    requests: int
    token_seconds: list[float]  # of each complete request: mean time between two tokens
    ttft_p50_ms: float
    ttft_p95_ms: float
    rss: float  # bytes, mean


def main() -> int:
    """Entry point; exit code 1 when something wanted is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--slots", type=int, default=64, help="of the capacity's closed loop")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        models = [base.name, *multiplied(args.variants, work / "variants", VARIANTS)]
        with server_process(base, work / "variants", work / "server.log") as (url, pid):
            result = asyncio.run(soak(url, pid, models, args.minutes, args.slots))
    show(result)
    save("soak", result)
    return int(not all(result["met"].values()))


async def soak(
    url: str, pid: int, models: Sequence[str], minutes: float, slots: int
) -> dict[str, Any]:
    """Capacity, load, and what is left of it on the server."""
    workload = Workload(models, distribution="zipf", disconnect=DISCONNECT)
    width = min(60 * WINDOW_MINUTES, 60 * minutes / WINDOWS)
    samples: list[tuple[float, int]] = []
    async with LoadClient(url) as client:
        rate = SHARE * await capacity(client, workload, slots)
        print(f"{rate:.2f} requests/s for {minutes:g} minutes", flush=True)
        sampling = asyncio.create_task(sample_memory(pid, samples))
        start = time.perf_counter()
        arrivals = PeriodicArrivals(rate, None, 60 * minutes, period=width)
        seen = await measure(client, workload, arrivals, warm_up=0)
        sampling.cancel()
    await asyncio.sleep(SETTLE_SECONDS)
    starts = [start + number * width for number in range(round(60 * minutes / width))]
    windows = [window(seen.outcomes, samples, begin, begin + width) for begin in starts]
    summary = summarise(seen)
    return {
        "rate": rate,
        "summary": asdict(summary),
        "windows": [asdict(window) for window in windows],
        "left_over": left_over(url),
        **judged(windows, summary.failed, left_over(url)),
    }


async def sample_memory(pid: int, samples: list[tuple[float, int]]) -> None:
    """Append (moment, bytes) every few seconds, until cancelled."""
    while True:
        samples.append((time.perf_counter(), memory_of(pid).rss))
        await asyncio.sleep(SAMPLE_SECONDS)


def window(
    outcomes: Sequence[Outcome], samples: Sequence[tuple[float, int]], begin: float, end: float
) -> Window:
    """Of the requests that were due in it.

    Raises:
        RuntimeError: none was answered whole.
    """
    begin += (end - begin) / 10
    due = [o for o in outcomes if begin <= o.begin < end]
    complete = [o for o in due if o.complete]
    if not complete:
        raise RuntimeError("a window without a complete answer; give more --minutes")
    ttft = np.percentile([1000 * o.ttft for o in complete], (50, 95))
    return Window(
        requests=len(due),
        token_seconds=[o.token_seconds for o in complete],
        ttft_p50_ms=float(ttft[0]),
        ttft_p95_ms=float(ttft[1]),
        rss=statistics.mean(rss for moment, rss in samples if begin <= moment < end),
    )


def left_over(url: str) -> dict[str, float]:
    """What an idle server should not hold."""
    metrics = httpx.get(f"{url}/metrics", timeout=30).text
    value = {
        name: value_of(metrics, f"tsugiki_{name}")
        for name in ("running", "waiting", "kv_blocks_total", "kv_blocks_free")
    }
    held = value["kv_blocks_total"] - value["kv_blocks_free"]
    return {"running": value["running"], "waiting": value["waiting"], "kv_blocks": held}


def judged(windows: Sequence[Window], failed: int, left_over: dict[str, float]) -> dict[str, Any]:
    """The wanted bounds, each met or not."""
    first, second, last = windows[0], windows[1], windows[-1]
    ratio = statistics.mean(last.token_seconds) / statistics.mean(first.token_seconds)
    growth = last.rss / second.rss - 1
    return {
        "itl_ratio": ratio,
        "itl_interval": ratio_interval(last.token_seconds, first.token_seconds),
        "rss_growth": growth,
        "met": {
            "no error": not failed,
            "inter-token latency": abs(ratio - 1) <= LATENCY_TOLERANCE,
            "memory": growth <= MEMORY_TOLERANCE,
            "nothing left over": not any(left_over.values()),
        },
    }


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the means."""
    draw = np.random.default_rng(0)
    ratios = [
        draw.choice(above, len(above)).mean() / draw.choice(below, len(below)).mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


async def capacity(client: LoadClient, workload: Workload, slots: int) -> float:
    """Requests a second of the same mix when there are always more of them."""
    seen = await measure(client, workload, ClosedLoop(slots, 4), warm_up=len(workload.models))
    return len(seen.outcomes) / seen.seconds


def show(result: dict[str, Any]) -> None:
    """A line for each window, and the verdicts."""
    print("window  requests  inter-token ms  TTFT p50 ms     p95   RSS MiB")
    for number, row in enumerate(result["windows"]):
        print(
            f"{number:>6}{row['requests']:>10}{1000 * statistics.mean(row['token_seconds']):>16.2f}"
            f"{row['ttft_p50_ms']:>13.1f}{row['ttft_p95_ms']:>8.1f}{row['rss'] / 2**20:>10.1f}"
        )
    summary, (low, high) = result["summary"], result["itl_interval"]
    print(
        f"{summary['complete']} complete, {summary['left']} left, {summary['failed']} failed "
        f"{summary['errors']}; inter-token last / first {result['itl_ratio']:.3f} "
        f"[{low:.3f}, {high:.3f}]; memory {result['rss_growth']:+.2%}; left over "
        f"{result['left_over']}"
    )
    for name, met in result["met"].items():
        print(f"{name}: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    raise SystemExit(main())
