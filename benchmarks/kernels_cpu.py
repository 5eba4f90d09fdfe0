"""What do compressed deltas cost on the CPU, beside the dense bfloat16 layer they ride on?

Microseconds a call, call overhead included, over distinct weights of 256 MB in all, so that caches
do not hold them. Ratios are taken interleaved (A B B A ...) against our own dense linear of the
same shape and rows, rebuilding a weight against a copy of it; they are reported as median with a
95 % bootstrap interval. Run it alone.

    python -m benchmarks.kernels_cpu [--threads N] [--pairs 9]
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import median_interval, save
from tsugiki.config import default_cache_dir
from tsugiki.model.slab import Slab, room
from tsugiki_kernels.deltas import (
    Delta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
    Stage,
    TensorTrainDelta,
)
from tsugiki_kernels.interface import KernelBackend, Staged
from tsugiki_kernels.select import backend

BYTES = 256 << 20
SHAPES = ((3072, 576), (4096, 4096))  # out, in
LOADS = ((1, 1), (2, 1), (8, 1), (128, 1), (8, 8), (16, 8), (64, 64))  # rows, variants
REBUILD = (0, 0)  # the load of rebuilding


def sparse(shape: tuple[int, int], rows_per_mask: int, bits: int, alpha: int) -> SparseDelta:
    """A random delta that keeps 1 of `alpha` columns."""
    out, inputs = shape
    tiles, kept = -(-out // rows_per_mask), inputs // alpha
    columns = torch.rand(tiles, inputs).argsort(1)[:, :kept].sort(1).values
    return SparseDelta(
        shape=shape,
        rows_per_mask=rows_per_mask,
        rows_per_step=16,
        bits=bits,
        zero=((1 << bits) - 1) / 2,
        gain=1e-3,
        columns=columns.to(torch.uint16),
        codes=torch.randint(
            0, 256, (tiles, -(-kept * rows_per_mask * bits // 8)), dtype=torch.uint8
        ),
        step=torch.ones(-(-out // 16), dtype=torch.float16),
        bias=None,
    )


def low_rank(shape: tuple[int, int], rank: int) -> LowRankDelta:
    """A random delta of this rank."""
    a, b = torch.randn(rank, shape[1]), torch.randn(shape[0], rank)
    return LowRankDelta(a.bfloat16(), b.bfloat16(), 1e-3, None)


def sign(shape: tuple[int, int]) -> SignDelta:
    """A random sign delta."""
    signs = torch.randint(0, 256, (shape[0], shape[1] // 8), dtype=torch.uint8)
    return SignDelta(shape, 1e-3, signs, torch.ones(shape[0], dtype=torch.float16), None)


def train(shape: tuple[int, int], rank: int, apart: int) -> TensorTrainDelta:
    """A random train of this rank and an entry of a byte in each `apart` columns of a row."""
    out, inputs = shape
    each = inputs // apart
    column = torch.arange(each) * apart + torch.randint(0, apart, (out, each))
    return TensorTrainDelta(
        shape=shape,
        stages=(Stage(1, inputs, rank, 1), Stage(1, rank, out, 1)),
        cores=torch.randn(rank * (inputs + out)).bfloat16(),
        rows_per_step=64,
        zero=127.5,
        gain=1e-5,
        row_start=torch.arange(0, out * each + 1, each, dtype=torch.int32),
        column=column.flatten().to(torch.uint16),
        value=torch.randint(0, 256, (out * each,), dtype=torch.uint8),
        step=torch.ones(-(-out // 64), dtype=torch.float16),
        bias=None,
    )


KINDS: dict[str, Callable[[tuple[int, int]], Delta]] = {
    "tiles of 16, 1 bit, 1/16": lambda shape: sparse(shape, 16, 1, 16),
    "tiles of 16, 4 bits, 1/16": lambda shape: sparse(shape, 16, 4, 16),
    "tiles of 16, 1 bit, 1/4": lambda shape: sparse(shape, 16, 1, 4),
    "rows apart, 4 bits, 1/16": lambda shape: sparse(shape, 1, 4, 16),
    "low rank 16": lambda shape: low_rank(shape, 16),
    "signs": sign,
    "train of rank 8, 1/50 apart": lambda shape: train(shape, 8, 50),
}


def copies(delta: Delta) -> Iterator[Delta]:
    """The delta again and again, each time in memory of its own."""
    while True:
        yield deepcopy(delta)


def staged_copies(kernels: KernelBackend, delta: Delta) -> list[Staged]:
    """Enough staged copies to fill BYTES, and to give each variant its own."""
    first = kernels.stage_all([[Placed(0, delta)]])
    count = max(-(-BYTES // first.nbytes), max(variants for _, variants in LOADS))
    more = (kernels.stage([Placed(0, copy)]) for copy in islice(copies(delta), count - 1))
    return [*first.linears, *more]


@dataclass(frozen=True)
class Side:
    """Something to time: one call over the next weights of its rotation."""

    call: Callable[[], object]

    def microseconds(self, seconds: float = 0.05) -> float:
        """Mean of one call over about `seconds`."""
        calls, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            self.call()
            calls += 1
        return (now - start) / calls * 1e6


def random_weights(shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Bfloat16, on huge pages as the engine keeps them. (What is random is packed already.)"""
    slab = Slab(sum(room(shape, torch.bfloat16) for shape in shapes), "cpu")
    return [slab.take(shape, torch.bfloat16).normal_() for shape in shapes]


def dense_side(kernels: KernelBackend, shape: tuple[int, int], rows: int) -> Side:
    """Our own bfloat16 linear."""
    x, out = torch.randn(rows, shape[1]).bfloat16(), torch.empty(rows, shape[0]).bfloat16()
    weights = cycle(random_weights([shape] * -(-BYTES // (2 * shape[0] * shape[1]))))
    return Side(lambda: kernels.linear(x, next(weights), None, out))


def copy_side(shape: tuple[int, int]) -> Side:
    """A weight copied into memory that is there."""
    base = torch.randn(shape).bfloat16()
    out = torch.empty_like(base)
    return Side(lambda: out.copy_(base))


def delta_side(
    kernels: KernelBackend, staged: list[Staged], shape: tuple[int, int], load: tuple[int, int]
) -> Side:
    """Rows evenly spread over distinct variants; load: (rows, variants)."""
    rows, variants = load
    groups = cycle(
        [staged[i : i + variants] for i in range(0, len(staged) - variants + 1, variants)]
    )
    x = torch.randn(rows, shape[1]).bfloat16()
    out = torch.zeros(rows, shape[0], dtype=torch.bfloat16)
    each = rows // variants
    spans = [(v * each, (v + 1) * each) for v in range(variants)]
    return Side(lambda: kernels.apply(x, out, next(groups), spans))


def rebuild_side(kernels: KernelBackend, staged: list[Staged], shape: tuple[int, int]) -> Side:
    """Rebuilding the whole dense weight."""
    deltas = cycle(staged)
    base = torch.randn(shape).bfloat16()
    out = torch.empty_like(base)
    return Side(lambda: kernels.reconstruct(base, next(deltas), out))


def compare(side: Side, beside: Side, pairs: int) -> dict[str, Any]:
    """Both sides' medians and the interval of their ratio, interleaved A B B A."""
    times: list[tuple[float, float]] = []
    side.microseconds(), beside.microseconds()
    for i in range(pairs):
        if i % 2:
            b, a = beside.microseconds(), side.microseconds()
        else:
            a, b = side.microseconds(), beside.microseconds()
        times.append((a, b))
    ratio, low, high = median_interval([a / b for a, b in times])
    mine, other = (median_interval([t[i] for t in times])[0] for i in (0, 1))
    return {"us": mine, "beside_us": other, "ratio": ratio, "low": low, "high": high}


def sides(
    kernels: KernelBackend, staged: list[Staged], shape: tuple[int, int], load: tuple[int, int]
) -> tuple[Side, Side]:
    """What is measured, and beside what."""
    if load == REBUILD:
        return rebuild_side(kernels, staged, shape), copy_side(shape)
    return delta_side(kernels, staged, shape, load), dense_side(kernels, shape, load[0])


def show(shape: tuple[int, int], kind: str, load: tuple[int, int], row: dict[str, Any]) -> None:
    """One line of the table."""
    what = "rebuild / copy" if load == REBUILD else f"{load[0]:3} rows, {load[1]:2} variants"
    print(
        f"{shape[0]}x{shape[1]:<5} {kind:26} {what:21} {row['us']:8.1f} us   beside "
        f"{row['beside_us']:8.1f} us   ratio {row['ratio']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}]",
        flush=True,
    )


def main() -> None:
    """Measure every kind, shape and load; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = backend("cpu", cache_dir=default_cache_dir() / "kernels")
    table = []
    for shape in SHAPES:
        for kind in args.kind or KINDS:
            staged = staged_copies(kernels, KINDS[kind](shape))
            for load in (*LOADS, REBUILD):
                row = compare(*sides(kernels, staged, shape, load), args.pairs)
                table.append({"shape": shape, "kind": kind, "load": load, **row})
                show(shape, kind, load, row)
    print(save("kernels_cpu", {"threads": args.threads, "rows": table}))


if __name__ == "__main__":
    main()
