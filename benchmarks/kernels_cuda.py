"""What do compressed deltas cost on a GPU, and how near is that to its memory bandwidth?

Needs an NVIDIA GPU. Each line is one call among others in a captured graph, as in a step of the
server: the time on the device (events around replays, divided by the calls of the graph), the bytes
that the call must move at least (compressed weights, activations in and out), the bandwidth that
makes, and its share of what a plain copy reaches on this GPU: the roofline of all of these kernels
for few rows. The calls of a graph have weights of their own, up to 1 GB or CALLS of them: small
deltas stay in a large L2 cache, the base does not. Beside them the base's own linear in bfloat16
(torch's, the same way): what a variant adds to it is the share that its users pay.

    python -m benchmarks.kernels_cuda [--kind 'signs'] [--calls 200]
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from benchmarks.kernels_cpu import KINDS, copies
from benchmarks.results import save
from tsugiki.config import default_cache_dir
from tsugiki_kernels.deltas import Delta, Placed, SparseDelta
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend, Staged
from tsugiki_kernels.select import backend

BYTES = 1 << 30
MOST_COPIES = 256  # of one delta
SHAPES = ((4096, 4096), (4096, 11008))  # out, in
LOADS = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32))  # rows, variants
CALLS = 64  # of a graph, at most
WARM_RUNS = 3  # the second run captures the graph

Call = Callable[[KernelBackend], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    shape: tuple[int, int]
    kind: str
    what: str
    us: float
    megabytes: float
    gigabytes_per_second: float
    of_copy: float  # share of the bandwidth of a copy


def on_device(run: Callable[[], object], times: int) -> float:
    """Mean microseconds of a run."""
    for _ in range(WARM_RUNS):
        run()
    event = torch.cuda.Event
    start, stop = (event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1000 / times


def microseconds(kernels: KernelBackend, calls: Sequence[Call], times: int) -> float:
    """Mean time of one of these calls, about `times` of them, all in one graph."""
    some = calls[:CALLS]

    def all_of(recorder: KernelBackend) -> None:
        for call in some:
            call(recorder)

    return on_device(kernels.record(all_of).run, -(-times // len(some))) / len(some)


def copy_bandwidth(times: int) -> float:
    """Bytes a second that a copy of BYTES reads and writes."""
    source = torch.empty(BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * BYTES / on_device(lambda: target.copy_(source), times) * 1e6


def applying(staged: Sequence[Staged], shape: tuple[int, int], load: tuple[int, int]) -> list[Call]:
    """Calls of `apply`, each with variants of its own."""
    rows, variants = load
    out, inputs = shape
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    y = torch.zeros(rows, out, device="cuda", dtype=torch.bfloat16)
    each = rows // variants
    spans = [(v * each, (v + 1) * each) for v in range(variants)]
    groups = [staged[i : i + variants] for i in range(0, len(staged) - variants + 1, variants)]

    def on(group: Sequence[Staged]) -> Call:
        return lambda recorder: recorder.apply(x, y, group, spans)

    return [on(group) for group in groups]


def rebuilding(staged: Sequence[Staged], shape: tuple[int, int]) -> list[Call]:
    """Calls of `reconstruct`."""
    base = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(base)

    def of(one: Staged) -> Call:
        return lambda recorder: recorder.reconstruct(base, one, out)

    return [of(one) for one in staged[:8]]


def dense(
    kernels: KernelBackend, shape: tuple[int, int], times: int, copying: float
) -> Iterator[Row]:
    """The base's linear at each number of rows."""
    out, inputs = shape
    weights = [
        torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        for _ in range(-(-BYTES // (2 * out * inputs)))
    ]
    for rows in sorted({rows for rows, _ in LOADS}):
        x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
        y = torch.zeros(rows, out, device="cuda", dtype=torch.bfloat16)

        def on(weight: Tensor, x: Tensor = x, y: Tensor = y) -> Call:
            return lambda recorder: recorder.linear(x, weight, None, y)

        us = microseconds(kernels, [on(weight) for weight in weights], times)
        nbytes = 2 * (out * inputs + rows * (inputs + out))
        yield row_of(shape, "base, bfloat16", f"{rows} rows", us, nbytes, copying)


def row_of(
    shape: tuple[int, int], kind: str, what: str, us: float, nbytes: int, copying: float
) -> Row:
    """A measurement with what follows from it."""
    rate = nbytes / us * 1e6
    return Row(shape, kind, what, us, nbytes / 1e6, rate / 1e9, rate / copying)


def on_gpu(delta: Delta) -> Delta:
    """Its kept columns where the kernels of tiles read them."""
    if isinstance(delta, SparseDelta):
        return replace(delta, columns=delta.columns.cuda())
    return delta


def measure_kind(
    kernels: KernelBackend, kind: str, shape: tuple[int, int], times: int, copying: float
) -> list[Row]:
    """All loads of one kind of delta, and rebuilding a weight."""
    delta = on_gpu(KINDS[kind](shape))
    first = kernels.stage_all([[Placed(0, delta)]])
    count = min(MOST_COPIES, max(-(-BYTES // first.nbytes), LOADS[-1][1]))
    more = (kernels.stage([Placed(0, one)]) for one in islice(copies(delta), count - 1))
    staged = [*first.linears, *more]
    out, inputs = shape

    def row(what: str, calls: Sequence[Call], nbytes: int) -> Row:
        return row_of(shape, kind, what, microseconds(kernels, calls, times), nbytes, copying)

    rows = []
    for load in LOADS:
        activations = 2 * load[0] * (inputs + 2 * out)  # x read; out read and written
        nbytes = load[1] * first.nbytes + activations
        what = f"{load[0]} rows, {load[1]} variants"
        rows.append(row(what, applying(staged, shape, load), nbytes))
    rebuilt = first.nbytes + 4 * out * inputs
    return [*rows, row("rebuild", rebuilding(staged, shape), rebuilt)]


def measure(
    kernels: KernelBackend, kinds: Sequence[str], times: int, copying: float
) -> Iterator[Row]:
    """Every shape: the base, then each kind."""
    for shape in SHAPES:
        yield from dense(kernels, shape, times, copying)
        for kind in kinds:
            yield from measure_kind(kernels, kind, shape, times, copying)


def main() -> int:
    """Measure, print the table, write JSON; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these")
    parser.add_argument("--calls", type=int, default=500)
    args = parser.parse_args()
    try:
        kernels = backend("cuda", "cuda", default_cache_dir() / "kernels")
    except BackendUnavailable as error:
        print(f"nothing measured: {error}")
        return 1
    copying = copy_bandwidth(args.calls)
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}: a copy reaches {copying / 1e9:.0f} GB/s")
    table = []
    for row in measure(kernels, args.kind or list(KINDS), args.calls, copying):
        table.append(asdict(row))
        print(
            f"{row.shape[0]}x{row.shape[1]:<6} {row.kind:26} {row.what:22} {row.us:8.1f} us "
            f"{row.megabytes:8.2f} MB {row.gigabytes_per_second:8.1f} GB/s "
            f"{row.of_copy:6.1%} of a copy",
            flush=True,
        )
    print(save("kernels_cuda", {"gpu": gpu, "copy_bytes_per_second": copying, "rows": table}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
