"""64 distinct variants at concurrency 64: what does a step cost, and could we have known?

Throughput by the usual protocol beside base-only, interleaved (reported, no target); and the time
of a decode step, from streams that all decode at once, beside a prediction from bytes and
operations:

    step(variants) = step(base, measured) + max(bytes / B, operations / S)

* bytes: what the variants hold on the device (each weight of each variant is read once a step), B:
  this machine's read bandwidth, measured over 256 MB;
* operations: one masked vector addition of 16 lanes for each kept column of each tile of 16 rows,
  for each request's row; S: how many of them a second the kernel does on one 4096x4096 layer that
  stays in the cache.

What the prediction leaves out is the price of a call and of its spans. The variants are those of
benchmarks.churn.variants (1 bit, 1 of 16 kept, tiles of 16 rows). Wanted: within 25 %. About 8
minutes, and once some more to make the variants. Run it alone on the machine.

    python -m benchmarks.many_variants --base demo
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks import load
from benchmarks.churn.memory import value_of
from benchmarks.churn.variants import default_folder
from benchmarks.idle_variants import hold, mixed_variants
from benchmarks.interleaved import HEADER, Comparison, Journal, compare, show
from benchmarks.kernels_cpu import delta_side, sparse
from benchmarks.resident import Resident, tsugiki_server
from benchmarks.results import machine, save
from benchmarks.served import placed
from tsugiki.bench.arrivals import ClosedLoop
from tsugiki.bench.workload import TokenPrompts, Workload
from tsugiki.codecs.artifact import read_header
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.select import backend

VARIANTS, LANES, ALPHA = 64, 16, 16
PROMPT, NEW = 16, 128  # of the streams that time a step
BYTES = 256 << 20
REPEATS = 20
TOLERANCE = 0.25


def main() -> int:
    """Entry point; exit code 1 when the prediction is off by more than a quarter."""
    args = _parser().parse_args()
    base = resolve_base(args.base, default_cache_dir())
    files = mixed_variants(base, args)
    names = placed(files, args.work / "variants")
    journal = Journal.open(args.work / f"many_variants-{machine()['commit']}.json")
    with tsugiki_server(base, args.work / "variants", args.work / "server.log") as server:
        hold(server, names)
        print(HEADER)
        a, b = (partial(measure_all, server, models) for models in (names, [base.name]))
        title = f"{len(names)} variants / base @{VARIANTS}"
        throughput = compare(Comparison(title, a, b, pairs=args.pairs), journal)
        show(throughput)
        steps = [step_times(server, names, base.name, number) for number in range(args.pairs)]
        held = resident_bytes(server)
    step = {kind: statistics.median(row[kind] for row in steps) for kind in ("variants", "base")}
    prediction = predict(files, held)
    predicted = step["base"] + prediction["added_ms"]
    off = predicted / step["variants"] - 1
    result = {
        "throughput": throughput,
        "step_ms": step,
        "steps": steps,
        **prediction,
        "predicted_ms": predicted,
        "off": off,
    }
    report(result)
    save("many_variants", result)
    return int(abs(off) > TOLERANCE)


def measure_all(server: Resident, models: list[str], label: str) -> dict[str, Any]:
    """The usual protocol with a slot for each variant."""
    with server.awake():
        return load.closed_loop(server.url, models, VARIANTS, label)


def step_times(server: Resident, names: list[str], base: str, number: int) -> dict[str, float]:
    """Milliseconds of a decode step with a row for each variant, and with as many of the base."""
    kinds = {"variants": names, "base": [base]}
    order = list(kinds) if number % 2 == 0 else list(reversed(kinds))
    return {kind: _step(server, kinds[kind], f"step {number} {kind}") for kind in order}


def _step(server: Resident, models: list[str], label: str) -> float:
    """The median gap while all streams decode: after the last first token, before any end."""
    prompts = TokenPrompts((PROMPT, PROMPT))
    workload = Workload(models, prompts, NEW, seed=load.seed_of(label))
    with server.awake():
        outcomes = load.run(server.url, workload, ClosedLoop(VARIANTS, 1)).outcomes
    begin = max(outcome.moments[0] for outcome in outcomes)
    end = min(outcome.moments[-1] for outcome in outcomes)
    return 1000 * statistics.median(
        after - before
        for outcome in outcomes
        for before, after in pairwise(outcome.moments)
        if begin < before and after < end
    )


def resident_bytes(server: Resident) -> float:
    """What the variants hold on the device, by the server's own count."""
    with server.awake():
        metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    return value_of(metrics, "tsugiki_resident_variant_bytes")


def predict(files: list[Path], held: float) -> dict[str, float]:
    """What a row of each variant adds to a step, from bytes and operations."""
    weights = sum(
        prod(module.shape)
        for file in files
        for module in read_header(file).modules.values()
        if module.codec == "deltadq"
    )
    operations = weights / ALPHA / LANES
    bandwidth, rate = read_bandwidth(), operation_rate()
    return {
        "bytes": held,
        "operations": operations,
        "bytes_per_second": bandwidth,
        "operations_per_second": rate,
        "added_ms": 1000 * max(held / bandwidth, operations / rate),
    }


def read_bandwidth() -> float:
    """Bytes a second of a sum over memory that no cache holds; the best of several."""
    values = torch.ones(BYTES // 4, dtype=torch.int32)
    return max(BYTES / seconds(lambda: values.sum()) for _ in range(REPEATS))


def operation_rate() -> float:
    """Masked vector additions a second on one layer in the cache, one row; the best of several."""
    shape = (4096, 4096)
    kernels = backend("cpu", cache_dir=default_cache_dir() / "kernels")
    staged = kernels.stage([Placed(0, sparse(shape, LANES, 1, ALPHA))])
    side = delta_side(kernels, [staged], shape, (1, 1))
    microseconds = min(side.microseconds() for _ in range(REPEATS))
    return prod(shape) / ALPHA / LANES / microseconds * 1e6


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(result: dict[str, Any]) -> None:
    """The prediction beside what was measured."""
    step = result["step_ms"]
    print(
        f"{result['bytes'] / 1e6:.1f} MB at {result['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{result['operations'] / 1e6:.1f} M operations at "
        f"{result['operations_per_second'] / 1e9:.2f} G/s: {result['added_ms']:.1f} ms added\n"
        f"decode step with {VARIANTS} rows: base {step['base']:.1f} ms, variants "
        f"{step['variants']:.1f} ms, predicted {result['predicted_ms']:.1f} ms, "
        f"off by {result['off']:+.1%}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--fine-tunes", type=Path, nargs="+", help="uncompressed checkpoints")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--work", type=Path, default=default_cache_dir() / "many_variants")
    parser.set_defaults(count=VARIANTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
