"""Does one tenant's flood keep another waiting, and are weights kept?

1. A tenant sends short requests, one after the other: alone, then while another tenant keeps 32
   long requests running. A short request that is scheduled in the first step after its arrival
   waits for the step under way and its own: p95 of its time to the first token must be within
   (alone, p95) + 2 median steps of the flood. A step is what the flood's streams see between two
   tokens.
2. Two tenants with more requests than run at once, for a minute: the tokens that each receives
   must be within 10 % of its share, with weights 1:1 and 1:3.

About 6 minutes. Run it alone on the machine.

    python -m benchmarks.fairness --base demo
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.keyed_server import keyed_server
from benchmarks.load import RequestsFailed
from benchmarks.results import RESAMPLES, save
from tsugiki.bench.arrivals import ClosedLoop
from tsugiki.bench.client import LoadClient
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.workload import TokenPrompts, Workload
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

FLOOD, LONG_PROMPT, LONG = 32, 256, 256  # requests at once, tokens in, tokens out
SHORT_PROMPT, SHORT = 32, 4
PAUSE = (0.05, 0.35)  # seconds between two short requests: no rhythm with the flood's steps
BACKLOG, RUNNING, NEW = 16, 8, 32  # requests of each tenant, requests in one step, tokens of each
GENERATIONS = 10  # a share is told by so many requests in each place of a step
TOLERANCE = 0.10


def main() -> int:
    """Entry point; exit code 1 when a bound is not kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--shorts", type=int, default=100, help="short requests, alone and beside")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each pair of weights")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with keyed_server(base, work, {"flood": 1, "short": 1}) as (url, keys):
            flood = asyncio.run(under_flood(url, keys, base.name, args.shorts))
        show_flood(flood)
        shares = []
        for weight in (1, 3):
            weights = {"light": 1, "heavy": weight}
            flags = ["--max-num-seqs", str(RUNNING)]
            with keyed_server(base, work, weights, flags) as (url, keys):
                shares.append(asyncio.run(backlogged(url, keys, base.name, weight, args.seconds)))
            show_shares(shares[-1])
    save("fairness", {"flood": flood, "shares": shares})
    return int(not flood["met"] or not all(share["met"] for share in shares))


async def under_flood(url: str, keys: dict[str, str], model: str, shorts: int) -> dict[str, Any]:
    """Times to the first token of short requests, alone and beside a flood; milliseconds."""
    async with (
        LoadClient(url, api_key=keys["flood"]) as flooding,
        LoadClient(url, api_key=keys["short"]) as client,
    ):
        await short_requests(client, model, 8, seed=0)
        alone = await short_requests(client, model, shorts, seed=1)
        stop = asyncio.Event()
        flood = asyncio.create_task(keep_flooding(flooding, model, stop))
        await short_requests(
            client, model, max(shorts // 5, 1), seed=2
        )  # until it is in full swing
        begin = time.perf_counter()
        beside = await short_requests(client, model, shorts, seed=3)
        end = time.perf_counter()
        stop.set()
        outcomes = await flood
    step = statistics.median(
        1000 * (b - a)
        for outcome in outcomes
        for a, b in zip(outcome.moments, outcome.moments[1:], strict=False)
        if begin <= a <= end
    )
    bound = p95(alone) + 2 * step
    return {
        "alone_ms": alone,
        "beside_ms": beside,
        "step_ms": step,
        "bound_ms": bound,
        "p95_interval": p95_interval(beside),
        "met": p95(beside) <= bound,
    }


async def short_requests(client: LoadClient, model: str, count: int, seed: int) -> list[float]:
    """One after the other with random pauses; milliseconds to the first token of each."""
    workload = Workload([model], TokenPrompts((SHORT_PROMPT, SHORT_PROMPT)), SHORT, seed=seed)
    pauses = random.Random(seed)
    times = []
    for number in range(count):
        await asyncio.sleep(pauses.uniform(*PAUSE))
        outcome = await client.send(workload.ask(number, 0), time.perf_counter())
        times.append(1000 * checked([outcome])[0].ttft)
    return times


async def keep_flooding(client: LoadClient, model: str, stop: asyncio.Event) -> list[Outcome]:
    """FLOOD requests at a time until told to stop; the last ones are read to their end."""
    workload = Workload([model], TokenPrompts((LONG_PROMPT, LONG_PROMPT)), LONG, seed=4)

    async def slot(number: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while not stop.is_set():
            ask = workload.ask(number, len(outcomes))
            outcomes.append(await client.send(ask, time.perf_counter()))
        return outcomes

    of_slots = await asyncio.gather(*(slot(number) for number in range(FLOOD)))
    return checked([outcome for outcomes in of_slots for outcome in outcomes])


async def backlogged(
    url: str, keys: dict[str, str], model: str, weight: float, seconds: float
) -> dict[str, Any]:
    """Tokens that two tenants received in one stretch of time, both with a queue throughout.

    Raises:
        RuntimeError: too few to tell their shares.
    """
    warm, ends = seconds / 6, seconds / 6 + seconds
    loop = ClosedLoop(BACKLOG, turns=None, seconds=ends)
    start = time.perf_counter()

    async def tenant(name: str, seed: int) -> int:
        workload = Workload([model], TokenPrompts((64, 64)), NEW, seed=seed)
        async with LoadClient(url, api_key=keys[name]) as client:

            async def send(slot: int, turn: int, begin: float) -> Outcome:
                return await client.send(workload.ask(slot, turn), begin)

            outcomes = checked(await loop.run(send))
        moments = [moment - start for outcome in outcomes for moment in outcome.moments]
        return sum(warm <= moment < ends for moment in moments)

    light, heavy = await asyncio.gather(tenant("light", 1), tenant("heavy", 2))
    if light + heavy < GENERATIONS * RUNNING * NEW:
        raise RuntimeError(f"{light + heavy} tokens tell no shares; give more --seconds")
    share, expected = heavy / (light + heavy), weight / (1 + weight)
    off = max(abs(share / expected - 1), abs((1 - share) / (1 - expected) - 1))
    return {
        "weights": [1, weight],
        "tokens": [light, heavy],
        "share": share,
        "expected": expected,
        "off": off,
        "met": off <= TOLERANCE,
    }


def checked(outcomes: list[Outcome]) -> list[Outcome]:
    """The same.

    Raises:
        RequestsFailed: one of them failed.
    """
    if failed := next((outcome.error for outcome in outcomes if outcome.error), None):
        raise RequestsFailed(failed)
    return outcomes


def p95(values: list[float]) -> float:
    """The value that one of twenty exceeds."""
    return float(np.percentile(values, 95))


def p95_interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of p95."""
    draw = np.random.default_rng(0)
    resamples = draw.choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.percentile(resamples, 95, axis=1), (2.5, 97.5))
    return float(low), float(high)


def show_flood(flood: dict[str, Any]) -> None:
    """Three lines."""
    low, high = flood["p95_interval"]
    print("time to first token of a short request, ms        p50      p95")
    for title, times in (("alone", flood["alone_ms"]), ("beside a flood", flood["beside_ms"])):
        print(f"{title:<44}{statistics.median(times):>9.1f}{p95(times):>9.1f}")
    verdict = "met" if flood["met"] else "MISSED"
    print(
        f"bound: alone + 2 steps of {flood['step_ms']:.1f} ms = {flood['bound_ms']:.1f} ms; "
        f"p95 [{low:.1f}, {high:.1f}]: {verdict}",
        flush=True,
    )


def show_shares(share: dict[str, Any]) -> None:
    """One line."""
    light, heavy = share["tokens"]
    print(
        f"weights 1:{share['weights'][1]}: {light} and {heavy} tokens, share {share['share']:.3f} "
        f"of {share['expected']:.3f}, off by {share['off']:.1%}: "
        f"{'met' if share['met'] else 'MISSED'}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
