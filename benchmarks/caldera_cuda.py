"""What does a linear on the lattice cost on a GPU, beside the same linear in bfloat16?

Needs an NVIDIA GPU. Each line is one call without factors, among others in a captured graph: the
time on the device (events around replays), the bytes that it must move at least (codes, scales,
activations in and out; where the weight is rebuilt, also that, written and read), the share of a
plain copy's bandwidth that makes, and the time of torch's own linear. Weights rotate through 256 MB
of codes.

    python -m benchmarks.caldera_cuda [--bits 2] [--rows 1 8 32 64 512] [--calls 200]
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks.kernels_cuda import copy_bandwidth, microseconds
from benchmarks.results import save
from tsugiki.config import default_cache_dir
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.lattice import REBUILD_FROM
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.lattice import LATTICE_BITS, RESIDUAL_DTYPE, LatticeWeight
from tsugiki_kernels.select import backend

BYTES = 1 << 28  # of codes
SHAPES = ((4096, 4096), (4096, 11008), (28672, 4096))  # out, in


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    shape: tuple[int, int]
    bits: int
    rows: int
    rebuilt: bool
    us: float
    dense_us: float
    of_copy: float  # share of the bandwidth of a copy


def lattices(shape: tuple[int, int], bits: int) -> Iterator[LatticeWeight]:
    """Random codes, until no cache holds them."""
    outputs, inputs = shape
    size, kind = (outputs, inputs // 8), RESIDUAL_DTYPE.get(bits)
    scales = torch.full((outputs,), 0.01, dtype=torch.bfloat16, device="cuda")
    for _ in range(-(-BYTES * 8 // (outputs * inputs * bits))):
        codes = torch.randint(-(1 << 15), 1 << 15, size, dtype=torch.int16, device="cuda")
        residual = None if kind is None else torch.randint(0, 128, size, device="cuda").to(kind)
        yield LatticeWeight(shape, bits, codes, residual, scales)


def measured(
    kernels: CudaBackend, weights: list[LatticeWeight], rows: int, times: int, copying: float
) -> Row:
    """One number of rows."""
    shape, bits = weights[0].shape, weights[0].bits
    outputs, inputs = shape
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    out = torch.zeros(rows, outputs, device="cuda", dtype=torch.bfloat16)
    dense = torch.randn(8, outputs, inputs, device="cuda", dtype=torch.bfloat16)

    def on(weight: LatticeWeight) -> Callable[[KernelBackend], None]:
        return lambda recorder: recorder.linear_lattice(  # type: ignore[attr-defined]
            x, weight, None, out
        )

    def plain(weight: torch.Tensor) -> Callable[[KernelBackend], None]:
        return lambda recorder: recorder.linear(x, weight, None, out)

    us = microseconds(kernels, [on(weight) for weight in weights], times)
    dense_us = microseconds(kernels, [plain(weight) for weight in dense], times)
    rebuilt = rows >= REBUILD_FROM
    nbytes = weights[0].nbytes + 2 * rows * (inputs + outputs) + 4 * outputs * inputs * rebuilt
    return Row(shape, bits, rows, rebuilt, us, dense_us, nbytes / us * 1e6 / copying)


def main() -> int:
    """Measure, print the table, write JSON; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, choices=LATTICE_BITS, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 8, 32, 64, 512))
    parser.add_argument("--calls", type=int, default=200)
    args = parser.parse_args()
    try:
        kernels = backend("cuda", "cuda", default_cache_dir() / "kernels")
    except BackendUnavailable as error:
        print(f"nothing measured: {error}")
        return 1
    if not isinstance(kernels, CudaBackend):
        raise SystemExit("the CUDA kernels are not available")
    copying = copy_bandwidth(args.calls)
    table = []
    for shape in SHAPES:
        weights = list(lattices(shape, args.bits))
        for rows in args.rows:
            row = measured(kernels, weights, rows, args.calls, copying)
            table.append(asdict(row))
            print(
                f"{shape[0]}x{shape[1]:<6} {row.bits} bits {rows:4} rows "
                f"{'rebuilt' if row.rebuilt else 'decoded'} {row.us:8.1f} us "
                f"{row.of_copy:6.1%} of a copy   bfloat16 {row.dense_us:8.1f} us "
                f"ratio {row.us / row.dense_us:.2f}",
                flush=True,
            )
    gpu = torch.cuda.get_device_name()
    print(save("caldera_cuda", {"gpu": gpu, "copy_bytes_per_second": copying, "rows": table}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
