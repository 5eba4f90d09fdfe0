"""What one launch must do, what a GPU can do, and the bound that follows.

The larger of bytes / bandwidth and instruction slots / issue rate of the multiprocessors that have
work. Latencies, launches (some microseconds each), L2 and shared-memory conflicts are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cuda_resources.resources import listings
from benchmarks.cuda_resources.sass import Listing
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.kernels import kernel_of
from tsugiki_kernels.cuda.sources import SOURCES

WARP_SLOTS = 4  # warp instructions that a multiprocessor issues in a clock
Costs = dict[str, float]  # instructions, by what they are for


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


def activations(outputs: int, inputs: int, tokens: int) -> int:
    """Bytes: x once, out read and written; 16 bits each."""
    return tokens * (inputs * 2 + outputs * 4)


def kernel_code(binaries: Binaries, architecture: str, kernel: str) -> Listing:
    """The machine code of one kernel."""
    found = listings(binaries.compiled(SOURCES / kernel_of(kernel).source, architecture))
    return next(listing for listing in found if listing.name == kernel)


def bound(launches: Sequence[Work], gpu: Gpu) -> str:
    """Microseconds of launches one after the other, and what binds the longest."""
    each = [(_memory(work, gpu), _issue(work, gpu)) for work in launches]
    memory, issue = max(each, key=max)
    return f"{1e6 * sum(map(max, each)):.2f} ({'memory' if memory > issue else 'issue'})"


def _memory(work: Work, gpu: Gpu) -> float:
    return work.nbytes / gpu.bandwidth


def _issue(work: Work, gpu: Gpu) -> float:
    return work.slots / (min(work.items, gpu.multiprocessors) * WARP_SLOTS * gpu.clock)
