"""What do sketched linears cost on the CPU, beside dense bfloat16 ones and beside the byte model?

Sixty linears of 3072 x 576 (106 million weights, as many as SmolLM2-135M's layers have), recorded
and replayed: the base alone, one variant's rows, and rows of as many variants, whose codebook
differences are 16-bit values or 8-bit codes. (4-bit codes lie in memory as 8-bit ones.) Ratios are
taken interleaved (A B B A ...) and reported as median with a 95 % bootstrap interval. MB: indices,
the base's codebooks and those of the variants present. Run it alone.

    python -m benchmarks.sketch_cpu [--threads N] [--pairs 9] [--groups 1 2 4] [--rows 1 4 8]
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from benchmarks.kernels_cpu import Side, compare, random_weights
from benchmarks.results import save
from tsugiki.config import default_cache_dir
from tsugiki_kernels.codebooks import CodebookWeight, IndexMap
from tsugiki_kernels.deltas import CodebookDelta, Placed
from tsugiki_kernels.interface import KernelBackend, ReadsCodebooks, Staged
from tsugiki_kernels.select import backend

SHAPE, LINEARS, BITS = (3072, 576), 60, 4


@dataclass(frozen=True)
class Sketched:
    """Linears with so many codebooks a row, and variants of all of them."""

    kernels: KernelBackend
    weights: Sequence[CodebookWeight]
    variants: Sequence[Sequence[Staged]]  # of each variant, by linear

    @classmethod
    def random(
        cls, kernels: KernelBackend, groups: int, value_bits: int, variants: int
    ) -> "Sketched":
        """Of random codes."""
        size = (SHAPE[0], SHAPE[1] * BITS // 8)
        maps = [
            IndexMap(SHAPE, BITS, groups, torch.randint(0, 256, size, dtype=torch.uint8))
            for _ in range(LINEARS)
        ]
        weights = [CodebookWeight(of, torch.randn(of.codebook_shape).half()) for of in maps]
        staged = [
            [kernels.stage([Placed(0, _change(of, value_bits))]) for of in maps]
            for _ in range(variants)
        ]
        return cls(kernels, weights, staged)

    def megabytes(self, variants: int, value_bits: int) -> float:
        """What a pass reads, but for x and out."""
        codes = sum(weight.index.codes.nbytes for weight in self.weights)
        entries = sum(weight.codebooks.numel() for weight in self.weights)
        return (codes + entries * (2 + variants * value_bits / 8)) / 1e6

    def run(self, x: Tensor, out: Tensor, variants: int) -> Callable[[], None]:
        """All linears; the rows in equal shares of so many variants, 0: the base's."""
        share = len(x) // max(1, variants)
        spans = [(v * share, (v + 1) * share) for v in range(variants)]

        def body(recorder: KernelBackend) -> None:
            for place, weight in enumerate(self.weights):
                cast(ReadsCodebooks, recorder).linear_codebooks(x, weight, None, out)
                if variants:
                    staged = [of[place] for of in self.variants[:variants]]
                    recorder.apply(x, out, staged, spans)

        return self.kernels.record(body).run


def _change(of: IndexMap, value_bits: int) -> CodebookDelta:
    if value_bits == 16:
        return CodebookDelta(of, 0.01, torch.randn(of.codebook_shape).half(), None, None)
    codes = torch.randint(-128, 128, of.codebook_shape, dtype=torch.int8)
    return CodebookDelta(of, 0.01, codes, torch.rand(of.shape[0]).half(), None)


def dense(kernels: KernelBackend, x: Tensor, out: Tensor) -> Callable[[], None]:
    """As many dense linears."""
    weights = random_weights([SHAPE] * LINEARS)

    def body(recorder: KernelBackend) -> None:
        for weight in weights:
            recorder.linear(x, weight, None, out)

    return kernels.record(body).run


def main() -> None:
    """Measure; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--groups", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 4, 8))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kernels = backend("cpu", cache_dir=default_cache_dir() / "kernels")
    table = []
    for groups in args.groups:
        for value_bits in (8, 16):
            sketched = Sketched.random(kernels, groups, value_bits, max(args.rows))
            for rows in args.rows:
                x = torch.randn(rows, SHAPE[1]).bfloat16()
                out = torch.empty(rows, SHAPE[0], dtype=torch.bfloat16)
                beside = Side(dense(kernels, x, out))
                for variants in sorted({0, 1, rows}) if value_bits == 8 else (rows,):
                    row = compare(Side(sketched.run(x, out, variants)), beside, args.pairs)
                    megabytes = sketched.megabytes(variants, value_bits)
                    what = {"groups": groups, "rows": rows, "variants": variants}
                    table.append({**what, "value_bits": value_bits, "mb": megabytes, **row})
                    print(
                        f"{groups} groups {rows:3} rows {variants:2} variants of {value_bits:2} "
                        f"bits {megabytes:6.1f} MB {row['us'] / 1e3:7.2f} ms   bfloat16 "
                        f"{row['beside_us'] / 1e3:7.2f} ms   "
                        f"ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                        flush=True,
                    )
    print(save("sketch_cpu", {"threads": args.threads, "rows": table}))


if __name__ == "__main__":
    main()
