"""What bounds the sparse CUDA kernels: bytes by formula, instruction slots from machine code.

ESTIMATES. Compiled for the GPU, executed on the CPU, not yet run on a GPU: no line of this table
was measured. The bound is the larger of bytes / bandwidth and instruction slots / issue rate of the
multiprocessors that have work; latencies, launches (some microseconds each), L2 and shared-memory
conflicts are not in it.

    python -m benchmarks.cuda_bounds
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda_resources.resources import listings
from benchmarks.cuda_resources.sass import Listing, count
from tsugiki.config import default_cache_dir
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.cupy_launcher import Nvrtc
from tsugiki_kernels.cuda.sources import SOURCES

SHAPES = ((4096, 4096), (4096, 11008))  # outputs, inputs
BATCHES = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32))  # tokens, variants
ALPHA = 16
WARP_SLOTS = 4  # warp instructions that a multiprocessor issues in a clock
PANEL_NONZEROS, STEP_NONZEROS = 512, 512  # of a warp, to one LDSM and to one turn of the loop


@dataclass(frozen=True, slots=True)
class Gpu:
    """Data-sheet figures."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes / s


GPUS = (
    Gpu("A100", "sm_80", 108, 1.41e9, 2.04e12),
    Gpu("H100", "sm_90", 132, 1.83e9, 3.35e12),
    Gpu("4090", "sm_89", 128, 2.52e9, 1.01e12),
)


@dataclass(frozen=True, slots=True)
class Work:
    """One launch."""

    nbytes: int
    operations: int
    slots: float  # warp instructions
    items: int  # blocks that have work


def tiles(outputs: int, inputs: int, tokens: int, variants: int, costs: dict[str, float]) -> Work:
    """rows_per_mask 16, 1 bit: codes, columns and steps; x staged for every 256 outputs."""
    kept, each = inputs // ALPHA, tokens // variants
    words = -(-kept // 64)
    own = outputs // 16 * (words * 128 + kept * 2) + outputs // 16 * 2
    items = variants * -(-outputs // 256)
    staged = items * inputs / 256 * (1 if inputs <= 4096 else 2)  # windows, once for 128 outputs
    passes = -(-each // 8)
    nonzeros = variants * outputs * kept
    slots = passes * (nonzeros * costs["tiles"] / 32 + staged * costs["stage tiles"])
    return Work(
        variants * own + _activations(outputs, inputs, tokens), 2 * nonzeros * each, slots, items
    )


def rows(outputs: int, inputs: int, tokens: int, variants: int, costs: dict[str, float]) -> Work:
    """rows_per_mask 1, 4 bits, groups of 64: 8 bits for the place of each entry."""
    each = tokens // variants
    windows = -(-inputs // 4096)
    entries = 8 * windows * 32  # of a row, with those that only fill up
    own = outputs * entries * 12 // 8 + outputs // 16 * 2
    items = variants * -(-outputs // 128)
    fours, ones = -(-(each - each % 4) // 4) + (each % 4 > 1), int(each % 4 == 1)
    per_entry = fours * costs["rows of 4"] + ones * costs["rows of 1"]
    staged = (fours + ones) * items * inputs / 256 * costs["stage rows"]
    slots = variants * outputs * entries * per_entry / 32 + staged
    return Work(
        variants * own + _activations(outputs, inputs, tokens),
        2 * variants * outputs * inputs // ALPHA * each,
        slots,
        items,
    )


def _activations(outputs: int, inputs: int, tokens: int) -> int:
    """x once, out read and written."""
    return tokens * (inputs * 2 + outputs * 4)


KERNELS = {"tiles, 1 bit": tiles, "rows, 4 bits": rows}


def read_costs(architecture: str, binaries: Binaries) -> dict[str, float]:
    """Instructions of a lane for each non-zero, of a warp for 256 columns of x; bfloat16.

    tiles: 1 bit, zero in the middle, for up to eight tokens. rows: the costliest width of codes,
    for one token and for up to four.
    """
    tile = _kernel(binaries, architecture, "sparse_tiles")
    row = _kernel(binaries, architecture, "sparse_rows")
    panels = [loop for loop in tile.loops() if count(loop, "LDSM") == 8]
    steps = [loop for loop in row.loops() if count(loop, "LDS") >= 16]
    fmas = sorted({count(loop, "FFMA") for loop in steps})
    one, four = ([loop for loop in steps if count(loop, "FFMA") == n] for n in (fmas[0], fmas[-1]))
    return {
        "tiles": min(map(len, panels)) * 32 / (8 * PANEL_NONZEROS),
        "rows of 1": max(map(len, one)) * 32 / STEP_NONZEROS,
        "rows of 4": max(map(len, four)) * 32 / STEP_NONZEROS,
        "stage tiles": len(tile.loop_with_most("STS")),
        "stage rows": len(row.loop_with_most("STS")),
    }


def _kernel(binaries: Binaries, architecture: str, source: str) -> Listing:
    cubin = binaries.compiled(SOURCES / f"{source}.cu", architecture)
    return next(k for k in listings(cubin) if k.name == f"tsugiki_{source}_bf16")


def bound(work: Work, gpu: Gpu) -> str:
    """Microseconds, and what they are bound by."""
    memory = work.nbytes / gpu.bandwidth
    issue = work.slots / (min(work.items, gpu.multiprocessors) * WARP_SLOTS * gpu.clock)
    return f"{1e6 * max(memory, issue):.2f} ({'memory' if memory > issue else 'issue'})"


def lines(costs: dict[str, dict[str, float]]) -> Iterator[str]:
    """The tables, in Markdown."""
    yield "Estimates: compiled for the GPU, executed on the CPU, not yet run on a GPU.\n"
    yield (
        "| instructions | " + " | ".join(gpu.architecture for gpu in GPUS) + " |\n|---|---|---|---|"
    )
    for name in costs[GPUS[0].architecture]:
        cells = " | ".join(f"{costs[gpu.architecture][name]:.2f}" for gpu in GPUS)
        yield f"| {name} | {cells} |"
    yield (
        "\n| kernel | shape | tokens / variants | MB | MFLOP | "
        + " | ".join(f"{gpu.name} us" for gpu in GPUS)
        + " |\n|---|---|---|---|---|---|---|---|"
    )
    for name, kernel in KERNELS.items():
        for outputs, inputs in SHAPES:
            for tokens, variants in BATCHES:
                works = [
                    kernel(outputs, inputs, tokens, variants, costs[gpu.architecture])
                    for gpu in GPUS
                ]
                bounds = " | ".join(map(bound, works, GPUS))
                yield (
                    f"| {name} | {outputs}x{inputs} | {tokens} / {variants} | "
                    f"{works[0].nbytes / 1e6:.2f} | {works[0].operations / 1e6:.1f} | {bounds} |"
                )


def main() -> None:
    """Compile the two sources, read their loops, print."""
    cache: Path = default_cache_dir() / "cuda"
    binaries = Binaries(cache, Nvrtc)
    costs = {gpu.architecture: read_costs(gpu.architecture, binaries) for gpu in GPUS}
    print("\n".join(lines(costs)))


if __name__ == "__main__":
    main()
