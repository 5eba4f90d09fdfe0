"""What do the dense linears of a step cost on the CPU, beside torch and beside the floor?

All linears of SmolLM2-135M, fused as the engine fuses them, one after the other: 269 MB of distinct
bfloat16 weights, so that caches do not hold them. Ours run as in a step, recorded and replayed;
torch's are `F.linear`. Ratios are taken interleaved (A B B A ...) and reported as median with a
95 % bootstrap interval. Floor: the larger of the weight's bytes over the read bandwidth and its
multiply-adds over the processor's rate, both given by hand. Run it alone.

With --rebuilt, one variant's chunk: base and delta in one pass beside the base alone.

    python -m benchmarks.linears_cpu [--threads N] [--pairs 9] [--rows 1 8 16 128] [--rebuilt]
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels_cpu import Side, compare, random_weights, sparse
from benchmarks.results import save
from tsugiki.config import default_cache_dir
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.select import backend

LAYERS = 30
LAYER = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # qkv, o, gate_up, down: (out, in)
LM_HEAD = (49152, 576)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Linears:
    """The weights of a step, and one x and out for each shape and at most so many rows."""

    weights: Sequence[Tensor]
    x: dict[int, Tensor]
    out: dict[int, Tensor]

    @classmethod
    def random(cls, shapes: Sequence[tuple[int, int]], rows: int) -> "Linears":
        """Of these shapes."""
        return cls(
            random_weights(shapes),
            {inputs: torch.randn(rows, inputs).bfloat16() for _, inputs in shapes},
            {out: torch.empty(rows, out, dtype=torch.bfloat16) for out, _ in shapes},
        )

    @property
    def elements(self) -> int:
        """Of all weights."""
        return sum(weight.numel() for weight in self.weights)

    def ours(self, kernels: KernelBackend, rows: int) -> Callable[[], None]:
        """The kernels, as a step replays them."""

        def body(recorder: KernelBackend) -> None:
            for weight in self.weights:
                x, out = self.x[weight.shape[1]][:rows], self.out[weight.shape[0]][:rows]
                recorder.linear(x, weight, None, out)

        return kernels.record(body).run

    def torchs(self, rows: int) -> Callable[[], None]:
        """torch's linear for each."""

        def run() -> None:
            with torch.inference_mode():
                for weight in self.weights:
                    F.linear(self.x[weight.shape[1]][:rows], weight)

        return run

    def rebuilt(self, kernels: KernelBackend, rows: int) -> Callable[[], None]:
        """The kernels with a delta of one of sixteen, 1 bit, on every weight."""
        deltas = [sparse((w.shape[0], w.shape[1]), 16, 1, 16) for w in self.weights]
        staged = [kernels.stage([Placed(0, delta)]) for delta in deltas]

        def body(recorder: KernelBackend) -> None:
            for weight, delta in zip(self.weights, staged, strict=True):
                x, out = self.x[weight.shape[1]][:rows], self.out[weight.shape[0]][:rows]
                recorder.linear_rebuilt(x, weight, None, delta, out, [(0, rows)])

        return kernels.record(body).run


def floor_ms(elements: int, rows: int, gigabytes: float, multiply_adds: float) -> float:
    """Milliseconds that no kernel can beat: `gigabytes` and 10^9 `multiply_adds` a second."""
    return max(elements * 2 / gigabytes, elements * rows / multiply_adds) / 1e6


def main() -> None:
    """Measure every number of rows; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rebuilt", action="store_true", help="a delta beside the base alone")
    parser.add_argument("--bandwidth", type=float, default=37.0, help="GB/s the machine reads")
    parser.add_argument("--rate", type=float, default=236.0, help="10^9 multiply-adds a second")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = backend("cpu", cache_dir=default_cache_dir() / "kernels")
    shapes = [*LAYER * LAYERS, *(() if args.rebuilt else (LM_HEAD,))]
    linears = Linears.random(shapes, max(args.rows))
    table = []
    for rows in args.rows:
        base = linears.ours(kernels, rows)
        if args.rebuilt:
            row = compare(Side(linears.rebuilt(kernels, rows)), Side(base), args.pairs)
        else:
            row = compare(Side(base), Side(linears.torchs(rows)), args.pairs)
        floor = floor_ms(linears.elements, rows, args.bandwidth, args.rate)
        table.append({"rows": rows, **row, "floor_ms": floor})
        print(
            f"{rows:4} rows {row['us'] / 1e3:8.2f} ms   floor {floor:7.2f} ms   "
            f"{'base alone' if args.rebuilt else 'torch'} {row['beside_us'] / 1e3:8.2f} ms   "
            f"ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
            flush=True,
        )
    name = "linears_rebuilt_cpu" if args.rebuilt else "linears_cpu"
    print(save(name, {"threads": args.threads, "rows": table}))


if __name__ == "__main__":
    main()
