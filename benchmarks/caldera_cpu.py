"""What do the linears of a CALDERA base cost in a step, beside ours in bfloat16 and sketched?

All linears of SmolLM2-135M's layers with random codes, one after the other as the engine fuses
them; 212 MB of bfloat16 weights, so that caches do not hold those. Recorded and replayed as in a
step. Ratios are taken interleaved (A B B A ...) and reported as median with a 95 % bootstrap
interval; above 1: slower than what it is beside. `apart`: factors in a pass of their own. With
--variants N, row i has the factors of variant i mod N. Run it alone.

    python -m benchmarks.caldera_cpu [--threads N] [--rows 1 8] [--rank 32] [--variants 1]
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.kernels_cpu import Side, compare, low_rank
from benchmarks.linears_cpu import LAYER, LAYERS, Linears
from benchmarks.results import save
from tsugiki.config import default_cache_dir
from tsugiki_kernels.codebooks import CodebookWeight, IndexMap
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.interface import KernelBackend, Span, Staged
from tsugiki_kernels.lattice import LatticeWeight
from tsugiki_kernels.select import backend

SHAPES = [*LAYER * LAYERS]


def lattices() -> list[LatticeWeight]:
    """Random codes of 2 bits."""
    return [
        LatticeWeight(
            (out, inputs),
            2,
            torch.randint(-(1 << 15), 1 << 15, (out, inputs // 8), dtype=torch.int16),
            None,
            torch.full((out,), 0.01, dtype=torch.bfloat16),
        )
        for out, inputs in SHAPES
    ]


def sketches() -> list[CodebookWeight]:
    """Random indices of 4 bits, one group."""
    return [
        CodebookWeight(
            IndexMap(
                (out, inputs), 4, 1, torch.randint(256, (out, inputs // 2), dtype=torch.uint8)
            ),
            torch.randn(out, 1, 16).half().sort(2).values,
        )
        for out, inputs in SHAPES
    ]


class Steps:
    """The forms to be compared, on one set of activations."""

    def __init__(self, kernels: CpuBackend, rows: int, rank: int, variants: int) -> None:
        self.kernels, self.rows = kernels, rows
        self.dense = Linears.random(SHAPES, rows)
        self.weights = lattices()
        self.spans: list[Span] = [(row, row + 1) for row in range(rows)]
        own = [
            [kernels.stage([Placed(0, low_rank(shape, rank))]) for shape in SHAPES]
            for _ in range(variants)
        ]
        self.factors: list[list[Staged]] = [
            [own[row % variants][place] for row in range(rows)] for place in range(len(SHAPES))
        ]

    def recorded(self, *, backbone: bool, factors: bool) -> Callable[[], None]:
        """The lattice, its factors, or both in one pass."""

        def body(recorder: KernelBackend) -> None:
            for place, weight in enumerate(self.weights):
                x, out = self.dense.x[weight.shape[1]], self.dense.out[weight.shape[0]]
                if backbone:
                    recorder.linear_lattice(x, weight, None, out)  # type: ignore[attr-defined]
                if factors:
                    recorder.apply(x, out, self.factors[place], self.spans)

        return self.kernels.record(body).run

    def sketched(self) -> Callable[[], None]:
        """Indices of 4 bits and one codebook a row."""
        books = sketches()

        def body(recorder: KernelBackend) -> None:
            for weight in books:
                x, out = self.dense.x[weight.shape[1]], self.dense.out[weight.shape[0]]
                recorder.linear_codebooks(x, weight, None, out)  # type: ignore[attr-defined]

        return self.kernels.record(body).run


def main() -> None:
    """Measure every number of rows; print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--variants", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = backend("cpu", cache_dir=default_cache_dir() / "kernels")
    if not isinstance(kernels, CpuBackend):
        raise SystemExit("the CPU kernels are not available")
    table = []
    for rows in args.rows:
        steps = Steps(kernels, rows, args.rank, args.variants)
        together = steps.recorded(backbone=True, factors=True)
        alone = steps.recorded(backbone=True, factors=False)
        after = steps.recorded(backbone=False, factors=True)

        def apart(first: Callable[[], None] = alone, then: Callable[[], None] = after) -> None:
            first()
            then()

        dense = Side(steps.dense.ours(kernels, rows))
        forms = {
            "backbone alone": alone,
            "with factors": together,
            "factors apart": apart,
            "sketched, 4 bits": steps.sketched(),
        }
        for name, form in forms.items():
            row = compare(Side(form), dense, args.pairs)
            table.append({"rows": rows, "form": name, **row})
            print(
                f"{rows:3} rows  {name:18} {row['us'] / 1e3:7.2f} ms   bfloat16 "
                f"{row['beside_us'] / 1e3:7.2f} ms   ratio {row['ratio']:.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}]",
                flush=True,
            )
    print(save("caldera_cpu", {**vars(args), "rows": table}))


if __name__ == "__main__":
    main()
