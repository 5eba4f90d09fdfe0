"""What trains and sparse entries cost beside the dense linear and a plain low rank.

One thread, one process, forms in turn; microseconds are medians. Weights rotate through
`--megabytes`, so that they come from memory. Resident bytes are a variant's for one linear.

    python -m benchmarks.saten.speed
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.codecs.base import PlacedPacked
from tsugiki.codecs.lora import CODEC as LORA
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.saten import CODEC
from tsugiki.config import default_cache_dir
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.interface import Staged

Call = Callable[[int], None]
FORMS: Mapping[str, tuple[str, dict[str, object]]] = {
    "lora, rank 8": ("lora", {"rank": 8}),
    "saten, rank 8": ("saten", {"rank": 8, "density": 0.0}),
    "saten, TT matrix of rank 8": ("saten", {"rank": 8, "density": 0.0, "modes": "matrix"}),
    "saten, 2 %": ("saten", {"rank": 0, "density": 0.02}),
    "saten, rank 8 + 2 %": ("saten", {"rank": 8, "density": 0.02}),
    "saten, rank 8 + 5 %": ("saten", {"rank": 8, "density": 0.05}),
    "saten, rank 8 + 20 %": ("saten", {"rank": 8, "density": 0.2}),
    "saten, 2:4": ("saten", {"rank": 0, "pattern": "2:4"}),
}


def delta_of(form: str, shape: tuple[int, int]) -> Delta:
    """A random change in this form."""
    codec, options = FORMS[form]
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packer = LORA if codec == "lora" else CODEC
    packed = packer.compress(torch.zeros(shape), change, None, options)
    return packer.resident(PlacedPacked(0, packed), torch.bfloat16, MaskCache())


def copies(nbytes: int, megabytes: int) -> int:
    """How many of so many bytes fill the memory that is rotated through."""
    return max(1, megabytes * 2**20 // max(nbytes, 1))


def measured(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Median microseconds of each, taken in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter_ns()
            call(turn)
            found[name].append((time.perf_counter_ns() - started) / 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def calls_for(
    shape: tuple[int, int], rows: int, megabytes: int, kernels: CpuBackend
) -> tuple[dict[str, Call], dict[str, int]]:
    """One call for each form, and resident bytes."""
    x = torch.randn(rows, shape[1]).bfloat16()
    out = torch.zeros(rows, shape[0], dtype=torch.bfloat16)
    dense = [
        torch.randn(shape).bfloat16() for _ in range(copies(2 * shape[0] * shape[1], megabytes))
    ]
    for weight in dense:
        kernels.pack(weight)

    def linear(turn: int) -> None:
        kernels.linear(x, dense[turn % len(dense)], None, out)

    calls: dict[str, Call] = {"dense": linear}
    sizes = {"dense": dense[0].nbytes}
    for form in FORMS:
        delta = delta_of(form, shape)
        nbytes = kernels.stage_all([[Placed(0, delta)]]).nbytes
        many = [kernels.stage([Placed(0, delta)]) for _ in range(copies(nbytes, megabytes))]
        calls[form] = _apply(kernels, x, out, many)
        sizes[form] = nbytes
    return calls, sizes


def _apply(kernels: CpuBackend, x: Tensor, out: Tensor, many: list[Staged]) -> Call:
    return lambda turn: kernels.apply(x, out, [many[turn % len(many)]], [(0, len(x))])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[1536, 576])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cache = default_cache_dir() / "kernels"
    kernels = CpuBackend(cache, prebuilt=Path("none"))
    shape = (arguments.shape[0], arguments.shape[1])
    found: dict[int, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for rows in arguments.rows:
        calls, sizes = calls_for(shape, rows, arguments.megabytes, kernels)
        found[rows] = measured(calls, arguments.repeats)
    heads = " | ".join(f"us at {rows} rows" for rows in arguments.rows)
    print(f"| {shape[0]} x {shape[1]} | resident bytes | {heads} |")
    print("|---" * (2 + len(arguments.rows)) + "|")
    for name in sizes:
        times = " | ".join(f"{found[rows][name]:.1f}" for rows in arguments.rows)
        print(f"| {name} | {sizes[name]:,} | {times} |")


if __name__ == "__main__":
    main()
