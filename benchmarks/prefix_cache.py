"""What does a shared prefix of 1,000 tokens save, and does another variant keep its hands off it?

For each of --prefixes fresh prefixes, in turn: a request with it (computed), a second one with the
same prefix and another end (must hit), the first one's very prompt for another variant, and under
another cache_salt (neither may hit). Time to the first token of each; hits by the server's own
count (`usage.prompt_tokens_details.cached_tokens`). About 1 minute. Run it alone on the machine.

    python -m benchmarks.prefix_cache --base demo --variants examples/variants
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load import prompt
from benchmarks.results import median_interval, save
from benchmarks.served import placed
from benchmarks.server import running_server
from tsugiki.bench.client import LoadClient
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.workload import Ask
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

PREFIX, END, NEW = 1000, 24, 4
TARGET = 0.15


def main() -> int:
    """Entry point; exit code 1 when the target is missed or a stranger hits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--prefixes", type=int, default=15)
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = sorted(args.variants.glob("*.safetensors"))[:2]
        first, second = placed(files, work / "variants")
        with running_server(base, work / "variants", work / "server.log") as url:
            rows = [
                summary(model, other, asyncio.run(measure(url, model, other, args.prefixes)))
                for model, other in ((base.name, first), (first, second))
            ]
    for row in rows:
        show(row)
    save("prefix_cache", rows)
    return int(not all(row["met"] for row in rows))


async def measure(url: str, model: str, other: str, prefixes: int) -> list[dict[str, Outcome]]:
    """What became of the four requests of each prefix; a first one warms up and is dropped."""
    async with LoadClient(url) as client, LoadClient(url, extra={"cache_salt": "a"}) as salted:
        found = []
        for number in range(prefixes + 1):
            prefix = prompt(PREFIX, f"{model} {number}")
            first = prompt(END, f"first {model} {number}", prefix)
            second = prompt(END, f"second {model} {number}", prefix)
            found.append(
                {
                    "first": await one(client, model, first),
                    "second": await one(client, model, second),
                    "other": await one(client, other, first),
                    "salted": await one(salted, model, first),
                }
            )
    return found[1:]


async def one(client: LoadClient, model: str, ids: list[int]) -> Outcome:
    """One request on an idle server."""
    outcome = await client.send(Ask(model, ids, NEW), time.perf_counter())
    if outcome.error is not None:
        raise RuntimeError(f"{model}: {outcome.error}")
    return outcome


def summary(model: str, other: str, found: Sequence[dict[str, Outcome]]) -> dict[str, Any]:
    """One row: times, hits, and the ratio that is wanted."""
    ratio, low, high = median_interval([f["second"].ttft / f["first"].ttft for f in found])
    strangers = sum(f[kind].cached_tokens for f in found for kind in ("first", "other", "salted"))
    return {
        "model": model,
        "other": other,
        "ttft_ms": {kind: [1000 * f[kind].ttft for f in found] for kind in found[0]},
        "cached_tokens": {kind: [f[kind].cached_tokens for f in found] for kind in found[0]},
        "ratio": ratio,
        "interval": [low, high],
        "met": high <= TARGET / 0.97 and strangers == 0,
    }


def show(row: dict[str, Any]) -> None:
    """A line for each kind of request, and the verdict."""
    print(f"{row['model']} (other: {row['other']})  TTFT ms, median   cached tokens, median")
    for kind, times in row["ttft_ms"].items():
        cached = median_interval(row["cached_tokens"][kind])[0]
        print(f"  {kind:<32}{median_interval(times)[0]:>10.1f}{cached:>20.0f}")
    low, high = row["interval"]
    verdict = "met" if row["met"] else "MISSED"
    print(f"  second / first {row['ratio']:.3f} [{low:.3f}, {high:.3f}], {TARGET}: {verdict}")


if __name__ == "__main__":
    raise SystemExit(main())
