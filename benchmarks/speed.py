"""How fast is decoding through HTTP, beside transformers, and what do mixed variants cost?

Closed loop, 128 random prompt tokens + 64 new ones, ignore_eos, streaming, warmed. Ratios are taken
interleaved (A B B A ...) and reported as median with a 95 % bootstrap interval. Run it alone on the
machine.

    python -m benchmarks.speed --base demo --variants examples/variants
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import torch
from transformers import AutoModelForCausalLM

from benchmarks.results import median_interval, save
from benchmarks.server import running_server
from benchmarks.variants import decompressed, distinct_variants
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

PROMPT, NEW = 128, 64
VOCABULARY = (100, 40000)  # random ordinary tokens
LAYOUTS = {
    "tiles of 16 rows, 1 bit, alpha 16": {"rows_per_mask": 16, "bits": 1, "alpha": 16},
    "per-row masks, 4 bits, alpha 16": {"rows_per_mask": 1, "bits": 4, "alpha": 16},
}


async def one(session: aiohttp.ClientSession, url: str, model: str, prompt: list[int]) -> None:
    """One streamed completion, read to its end."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for _ in answer.content.iter_any():
            pass


async def closed_loop(url: str, models: list[str], concurrency: int, rounds: int) -> float:
    """Generated tokens a second with `concurrency` clients, each on its own model in turn."""
    generator = random.Random(concurrency)
    prompts = [
        [generator.randrange(*VOCABULARY) for _ in range(PROMPT)]
        for _ in range(concurrency * rounds)
    ]

    async def client(slot: int, session: aiohttp.ClientSession) -> None:
        for turn in range(rounds):
            prompt = prompts[slot * rounds + turn]
            await one(session, url, models[slot % len(models)], prompt)

    timeout = aiohttp.ClientTimeout(total=3600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(slot, session) for slot in range(concurrency)))
        return concurrency * rounds * NEW / (time.perf_counter() - start)


def transformers_speed(model: Any, batch: int) -> float:
    """Generated tokens a second of `generate` with an equal batch, prefill included."""
    ids = torch.randint(*VOCABULARY, (batch, PROMPT))
    start = time.perf_counter()
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    return batch * NEW / (time.perf_counter() - start)


def interleave(a: Callable[[], float], b: Callable[[], float], pairs: int) -> dict[str, Any]:
    """A B B A ...: medians of both and the median ratio A / B with its interval."""
    a(), b()  # warm
    measured: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2 == 0:
            left = a()
            measured.append((left, b()))
        else:
            right = b()
            measured.append((a(), right))
    ratio = median_interval([left / right for left, right in measured])
    return {
        "a": median_interval([left for left, _ in measured])[0],
        "b": median_interval([right for _, right in measured])[0],
        "ratio": ratio[0],
        "interval": ratio[1:],
        "pairs": measured,
    }


def show(title: str, concurrency: int, row: dict[str, Any]) -> None:
    """One line of the table."""
    low, high = row["interval"]
    print(
        f"{title:<58}{concurrency:>4}{row['a']:>9.1f}{row['b']:>9.1f}"
        f"{row['ratio']:>8.2f}  [{low:.2f}, {high:.2f}]",
        flush=True,
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the variants made here")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = args.work or Path(name)
        tuned = decompressed(base, args.variants, work / "tuned")
        layouts = distinct_variants(base, tuned, work / "variants", 8, LAYOUTS)
        print(f"{'A / B':<58}{'c':>4}{'A tok/s':>9}{'B tok/s':>9}{'A / B':>8}  95 % interval")
        with running_server(base, work / "variants", work / "server.log") as url:
            results = measure(url, base, layouts, args)
    save("speed", results)
    return 0


def measure(
    url: str, base: Path, layouts: dict[str, list[str]], args: argparse.Namespace
) -> dict[str, Any]:
    """Every comparison, in turn."""

    def served(models: list[str], concurrency: int) -> Callable[[], float]:
        return lambda: asyncio.run(closed_loop(url, models, concurrency, args.rounds))

    results: dict[str, Any] = {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    base_id = base.name
    for concurrency in (1, 8, 16):
        row = interleave(
            served([base_id], concurrency),
            partial(transformers_speed, model, concurrency),
            args.pairs,
        )
        results[f"base / transformers generate @{concurrency}"] = row
        show("our base-only over HTTP / transformers generate", concurrency, row)
    for title, names in layouts.items():
        for concurrency in (8, 16):
            row = interleave(served(names, concurrency), served([base_id], concurrency), args.pairs)
            results[f"8 variants ({title}) / base @{concurrency}"] = row
            show(f"8 variants, {title} / base-only", concurrency, row)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
