"""What each kernel takes, by architecture: compiled by NVRTC, read by NVIDIA's binary tools.

Owns: compiling all sources for all architectures, and reading registers, memory and instruction
counts out of the result. Needs no GPU.
"""

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cuda_resources.occupancy import occupancy
from benchmarks.cuda_resources.sass import Listing, count, parse
from tsugiki_kernels.cuda.binaries import Binaries, Compiler
from tsugiki_kernels.cuda.requirements import ARCHITECTURES
from tsugiki_kernels.cuda.sources import sources

WHEEL_TOOLS = Path("nvidia/cu13/bin")  # where NVIDIA's wheels put theirs
SINCE_AMPERE = 1024  # bytes that the system reserves of a block's shared memory; see _static_shared


@dataclass(frozen=True, slots=True)
class Resources:
    """One kernel on one architecture."""

    kernel: str
    architecture: str
    registers: int  # of a thread
    spill_bytes: int  # of a thread's stack and local memory
    spill_instructions: int  # loads and stores of local memory
    static_shared_bytes: int  # of a block
    threads: int  # most of a block: __launch_bounds__
    instructions: int
    wide_loads: int  # 16 bytes from global memory, asynchronous copies included
    wide_stores: int
    mma: int  # tensor-core instructions

    def occupancy(self, dynamic_shared_bytes: int = 0) -> float:
        """Resident warps as a share of the most, 0 .. 1."""
        shared = self.static_shared_bytes + dynamic_shared_bytes
        return occupancy(self.architecture, self.registers, shared, self.threads)


def find_tool(name: str) -> Path | None:
    """cuobjdump or nvdisasm, of NVIDIA's wheel or on the PATH."""
    wheel = Path(sysconfig.get_path("platlib")) / WHEEL_TOOLS / name
    on_path = shutil.which(name)
    return wheel if wheel.exists() else Path(on_path) if on_path else None


def compile_all(
    compiler: Compiler, cache: Path, architectures: Sequence[str] = ARCHITECTURES
) -> dict[tuple[str, str], Path]:
    """The cubin of every (source name, architecture), compiled in parallel where not in the cache.

    Raises:
        CompileFailed: a source is refused.
    """
    binaries = Binaries(cache, lambda: compiler)
    jobs = [(source, name) for source in sources() for name in architectures]
    with ThreadPoolExecutor() as pool:
        paths = pool.map(lambda job: binaries.compiled(*job), jobs)
        return {(s.name, name): path for (s, name), path in zip(jobs, paths, strict=True)}


def listings(cubin: Path) -> list[Listing]:
    """The machine code of every kernel in a cubin."""
    return list(parse(_run("nvdisasm", "-c", str(cubin))))


def read_resources(cubin: Path, architecture: str) -> list[Resources]:
    """What every kernel in a cubin takes."""
    usage = dict(_usage(_run("cuobjdump", "-res-usage", str(cubin))))
    threads = dict(_threads(_run("cuobjdump", "-elf", str(cubin))))
    return [
        _resources(listing, architecture, usage[listing.name], threads.get(listing.name, 1024))
        for listing in listings(cubin)
    ]


def read_all(cubins: dict[tuple[str, str], Path]) -> list[Resources]:
    """Of all kernels on all architectures, by name and then architecture."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda item: read_resources(item[1], item[0][1]), cubins.items())
        return sorted(
            (one for several in found for one in several),
            key=lambda one: (one.kernel, ARCHITECTURES.index(one.architecture)),
        )


def _resources(
    listing: Listing, architecture: str, usage: dict[str, int], threads: int
) -> Resources:
    code = listing.instructions
    return Resources(
        kernel=listing.name,
        architecture=architecture,
        registers=usage["REG"],
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        spill_instructions=count(code, "LDL", "STL"),
        static_shared_bytes=_static_shared(architecture, usage["SHARED"]),
        threads=threads,
        instructions=sum(i.base != "NOP" for i in code),
        wide_loads=count(code, "LDG", "LDGSTS", modifier="128"),
        wide_stores=count(code, "STG", modifier="128"),
        mma=sum(i.unit == "tensor" for i in code),
    )


def _static_shared(architecture: str, reported: int) -> int:
    """Since sm_90 cuobjdump counts what the system reserves of a block that uses any."""
    counts_reserved = int(architecture.removeprefix("sm_")) >= 90
    return reported - SINCE_AMPERE if counts_reserved and reported else reported


def _usage(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Per kernel, what `cuobjdump -res-usage` says: REG, STACK, SHARED, LOCAL, ..."""
    for name, line in re.findall(r"Function (\w+):\n\s*(.*)", text):
        yield name, {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}


def _threads(text: str) -> Iterator[tuple[str, int]]:
    """Per kernel with __launch_bounds__, the most threads of a block, from `cuobjdump -elf`."""
    for part in re.split(r"(?m)^\.nv\.info\.", text)[1:]:
        extents = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+(.*)", part)
        if extents is not None:
            x, y, z = (int(extent, 16) for extent in extents.group(1).split())
            yield part.split(maxsplit=1)[0], x * y * z


def _run(tool: str, *arguments: str) -> str:
    path = find_tool(tool)
    if path is None:
        raise FileNotFoundError(f"{tool} is not installed: pip install nvidia-cuda-{tool}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
