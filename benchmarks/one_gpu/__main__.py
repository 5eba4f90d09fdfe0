"""Hundreds of fine-tunes of one base on one GPU: memory, time to load, throughput beside the base.

A random base of a real shape and random variants of it, all different (benchmarks/one_gpu/), served
by `tsugiki serve --device cuda`. Every variant is loaded, then requests for as many different ones
as there are slots alternate with requests for the base alone, by the usual protocol
(benchmarks.load: 128 tokens of prompt, 64 of answer). Rates mean what they say; the answers mean
nothing.

    python -m benchmarks.one_gpu --shape 8b --variants 500 --work /dev/shm/one_gpu
"""

import argparse
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks import load
from benchmarks.one_gpu.base import CONFIGS, random_base
from benchmarks.one_gpu.variants import random_variants
from benchmarks.results import median_interval, save
from benchmarks.server import server_process

LOADERS = 4  # requests to load that are under way at once


def main() -> int:
    """Entry point."""
    args = _parser().parse_args()
    cache = args.work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    base = random_base(args.shape, args.work)
    print(f"base {base}: {size_of(base) / 1e9:.2f} GB", flush=True)
    folder = args.work / f"{args.shape}-variants"
    names = random_variants(base, folder, args.variants, cache)
    print(f"{len(names)} variants: {size_of(folder) / 1e9:.2f} GB", flush=True)
    flags = ["--device", "cuda", "--kernels", "cuda", "--max-model-len", "2048"]
    flags += ["--max-num-seqs", str(max(args.slots)), "--kv-memory", args.kv_memory]
    flags += ["--variant-memory", args.variant_memory, "--host-variant-memory", "64MiB"]
    started = time.perf_counter()
    with server_process(base, folder, args.work / "server.log", flags) as (url, _):
        start_seconds = time.perf_counter() - started
        before = gpu_megabytes()
        print(f"ready in {start_seconds:.1f} s, {before} MiB on the GPU", flush=True)
        loads, load_seconds = load_all(url, names)
        after = gpu_megabytes()
        print(
            f"{len(names)} loaded in {load_seconds:.1f} s, each {statistics.median(loads):.3f} s "
            f"(median); {after} MiB on the GPU",
            flush=True,
        )
        result: dict[str, Any] = {
            "shape": args.shape,
            "variants": len(names),
            "base_bytes": size_of(base),
            "variant_bytes": size_of(folder) / len(names),
            "start_seconds": start_seconds,
            "load_seconds_each": statistics.median(loads),
            "load_seconds_all": load_seconds,
            "gpu_mib": {"started": before, "loaded": after},
            "room": httpx.get(f"{url}/health").json().get("room"),
            "rows": [],
        }
        for slots in args.slots:  # each is on disk before the next begins
            result["rows"].append(measure(url, base.name, names, slots, args.pairs))
            file = save(f"one_gpu-{args.shape}", result)
    print(file)
    return 0


def load_all(url: str, names: list[str]) -> tuple[list[float], float]:
    """Seconds of each load and of all."""

    def one(name: str) -> float:
        started = time.perf_counter()
        httpx.post(f"{url}/v1/variants/{name}/load", timeout=600).raise_for_status()
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(LOADERS) as pool:
        return list(pool.map(one, names)), time.perf_counter() - started


def measure(url: str, base: str, names: list[str], slots: int, pairs: int) -> dict[str, Any]:
    """As many different variants as slots, beside the base."""
    chosen = [names[i * len(names) // slots % len(names)] for i in range(slots)]
    for models in (chosen, [base]):  # shapes of steps are recorded at their first run
        load.closed_loop(url, models, slots, f"warm {slots}")
    ratios: list[float] = []
    rates: dict[str, list[float]] = {"variants": [], "base": []}
    for number in range(pairs):
        order = ("variants", "base") if number % 2 == 0 else ("base", "variants")
        cell = {
            side: load.closed_loop(
                url, chosen if side == "variants" else [base], slots, f"{slots} {number} {side}"
            )["tokens_per_second"]
            for side in order
        }
        ratios.append(cell["variants"] / cell["base"])
        for side, rate in cell.items():
            rates[side].append(rate)
    ratio, low, high = median_interval(ratios)
    row = {"slots": slots, "pairs": pairs, "ratio": ratio, "interval": [low, high]}
    row |= {side: statistics.median(found) for side, found in rates.items()}
    print(
        f"@{slots:<4} {row['variants']:9.1f} tok/s of different variants, {row['base']:9.1f} of "
        f"the base: {ratio:.3f} [{low:.3f}, {high:.3f}]",
        flush=True,
    )
    return row


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def gpu_megabytes() -> int:
    """MiB in use on the GPU, by all."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=CONFIGS, default="8b")
    parser.add_argument("--variants", type=int, default=100)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--kv-memory", default="4GiB")
    parser.add_argument("--variant-memory", default="40GiB")
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for all files")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
