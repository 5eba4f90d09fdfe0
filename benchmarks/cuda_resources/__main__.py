"""What does each CUDA kernel take of a GPU: registers, spills, memory, occupancy, instructions?

Read from machine code, on a machine without a GPU: compiled for the GPU, not run on one. Occupancy
counts the dynamic shared memory of a launch with the largest window of x. --tighten writes
tests/kernels/cuda/limits.json anew: every limit as it is read now, on all architectures.

    python -m benchmarks.cuda_resources [--kernel 'tsugiki_sparse_*'] [--arch sm_80,sm_90]
        [--loops] [--json FILE] [--tighten]
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.cuda_resources.limits import (
    dynamic_shared_bytes,
    load_limits,
    save_limits,
    tightened,
)
from benchmarks.cuda_resources.resources import Resources, compile_all, listings, read_all
from benchmarks.cuda_resources.sass import UNITS, by_unit
from tsugiki.config import default_cache_dir
from tsugiki_kernels.cuda.build import parse_architectures
from tsugiki_kernels.cuda.cupy_launcher import Nvrtc
from tsugiki_kernels.cuda.requirements import ARCHITECTURES

HEADER = (
    "| kernel | arch | threads | registers | spills | shared KB | occupancy | 16-byte loads | "
    "16-byte stores | mma | instructions |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(one: Resources, dynamic_shared_bytes: int) -> str:
    """A line of the table."""
    shared = (one.static_shared_bytes + dynamic_shared_bytes) / 1024
    cells = (
        *(one.kernel, one.architecture, one.threads, one.registers),
        *(one.spill_bytes + one.spill_instructions, f"{shared:.1f}"),
        *(f"{one.occupancy(dynamic_shared_bytes):.0%}", one.wide_loads, one.wide_stores),
        *(one.mma, one.instructions),
    )
    return f"| {' | '.join(map(str, cells))} |"


def loop_rows(cubin: Path, kernel: str) -> Iterable[str]:
    """The innermost loops of matching kernels: instructions of one turn, by unit."""
    for listing in listings(cubin):
        if fnmatch(listing.name, kernel):
            for loop in listing.loops():
                units = by_unit(loop)
                parts = ", ".join(f"{units[unit]} {unit}" for unit in UNITS if units[unit])
                yield f"{listing.name}: {len(loop)} instructions ({parts})"


def main() -> None:
    """Compile, read, print the table; write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="*", help="a pattern of names")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES))
    parser.add_argument("--loops", action="store_true", help="show the innermost loops too")
    parser.add_argument("--json", type=Path, help="where to write all that was read")
    parser.add_argument("--tighten", action="store_true", help="write the limits as measured now")
    options = parser.parse_args()
    if options.tighten and options.arch != ",".join(ARCHITECTURES):
        parser.error("--tighten: limits are of all architectures, leave --arch out")
    cubins = compile_all(
        Nvrtc(), default_cache_dir() / "kernels", parse_architectures(options.arch)
    )
    everything = read_all(cubins)
    if options.tighten:
        save_limits(tightened(load_limits(), everything))
    found = [one for one in everything if fnmatch(one.kernel, options.kernel)]
    print(HEADER)
    for one in found:
        print(row(one, dynamic_shared_bytes(one)))
    if options.loops:
        for (_, architecture), cubin in cubins.items():
            for line in loop_rows(cubin, options.kernel):
                print(f"{architecture} {line}")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
