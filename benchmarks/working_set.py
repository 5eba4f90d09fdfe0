"""Does throughput fall smoothly when more variants are hot than fit into memory?

The device's budget holds `--capacity` variants. A closed loop of clients picks a hot variant at
random for every request, with 1, 2, 4 and 8 times as many hot variants as fit: once with a host
tier, where what was evicted needs only staging, once without, where it is read and verified again.
Uniform choice is the worst case for LRU: of 8 times as many, one request in eight is a hit.

The variants are the shipped files under other digests (another provenance), so that the numbers
are those of real sizes and of shared masks, and nothing but the checkout is needed.

    python -m benchmarks.working_set --base demo --variants examples/variants
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.results import save
from benchmarks.served import multiplied
from benchmarks.server import running_server

RATIOS = (1, 2, 4, 8)
PROMPT, NEW = 32, 16
VOCABULARY = (100, 40000)  # random ordinary tokens
HOSTS = {"host tier of 4 GiB": "4GiB", "no host tier (the default on a CPU)": "0"}


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    hot: int
    capacity: int
    requests: int
    tokens_per_second: float
    ttft_p50: float  # seconds
    ttft_p99: float
    device_hits: float  # share of requests
    loads: int
    load_ms: float  # read + verify + stage of one load, mean


def metrics(url: str) -> dict[str, float]:
    """The server's counters of variants: "name/label" -> value."""
    text = httpx.get(f"{url}/metrics", timeout=30.0).text
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("tsugiki_variant_")
    }


def bytes_of(url: str, names: list[str]) -> int:
    """Device memory of these variants together."""
    for name in names:
        httpx.post(f"{url}/v1/variants/{name}/load", timeout=60.0).raise_for_status()
    return int(metrics(url)["tsugiki_variant_tier_bytes/device"])


async def one(session: aiohttp.ClientSession, url: str, model: str, draw: random.Random) -> float:
    """One streamed completion, read to its end; seconds to its first token."""
    prompt = [draw.randrange(*VOCABULARY) for _ in range(PROMPT)]
    body = {
        "model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    begin, first = time.perf_counter(), 0.0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_any():
            first = first or time.perf_counter() - begin
    return first


async def closed_loop(url: str, hot: list[str], clients: int, seconds: float) -> list[float]:
    """Seconds to the first token of every request that ended within the time."""
    end = time.perf_counter() + seconds
    times: list[float] = []

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        draw = random.Random(number)
        while time.perf_counter() < end:
            first = await one(session, url, draw.choice(hot), draw)
            if time.perf_counter() < end:
                times.append(first)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as session:
        await asyncio.gather(*(client(number, session) for number in range(clients)))
    return times


def measure(url: str, hot: list[str], args: argparse.Namespace) -> Row:
    """One ratio, after a warm-up of a quarter of the time."""
    asyncio.run(closed_loop(url, hot, args.clients, args.seconds / 4))
    before = metrics(url)
    times = asyncio.run(closed_loop(url, hot, args.clients, args.seconds))
    after = metrics(url)
    if not times:
        raise RuntimeError(f"no request ended within {args.seconds} s; give more --seconds")
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    hits = grown["tsugiki_variant_tier_hits_total/device"]
    asked = hits + grown["tsugiki_variant_tier_misses_total/device"]
    loads = grown["tsugiki_variant_loads_total"]
    spent = sum(
        grown[f"tsugiki_variant_load_seconds_total/{part}"] for part in ("read", "verify", "stage")
    )
    return Row(
        hot=len(hot),
        capacity=args.capacity,
        requests=len(times),
        tokens_per_second=NEW * len(times) / args.seconds,
        ttft_p50=statistics.median(times),
        ttft_p99=sorted(times)[int(0.99 * len(times))],
        device_hits=hits / asked,
        loads=int(loads),
        load_ms=1000 * spent / loads if loads else 0.0,
    )


def show(row: Row, first: Row) -> None:
    """One line of the table."""
    print(
        f"{row.hot / row.capacity:>6.0f}x{row.hot:>6}{row.tokens_per_second:>9.1f}"
        f"{row.tokens_per_second / first.tokens_per_second:>8.2f}{1000 * row.ttft_p50:>10.0f}"
        f"{1000 * row.ttft_p99:>10.0f}{row.device_hits:>8.2f}{row.loads:>7}{row.load_ms:>9.1f}",
        flush=True,
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--capacity", type=int, default=8, help="variants that fit")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        names = multiplied(args.variants, work / "variants", args.capacity * max(RATIOS))
        with running_server(args.base, work / "variants", work / "sizes.log") as url:
            room = bytes_of(url, names[: args.capacity])
        for title, host in HOSTS.items():
            flags = ["--variant-memory", str(room), "--host-variant-memory", host]
            print(f"\n{title}; {args.capacity} variants fit into {room / 2**20:.1f} MiB")
            print("   hot      n    tok/s   of 1x  TTFT p50       p99    hits  loads  ms each")
            log = work / f"{host}.log"
            with running_server(args.base, work / "variants", log, flags) as url:
                rows: list[Row] = []
                for ratio in RATIOS:
                    rows.append(measure(url, names[: ratio * args.capacity], args))
                    show(rows[-1], rows[0])
            results[title] = [asdict(row) for row in rows]
    save("working_set", results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
