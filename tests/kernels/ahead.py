"""What the tests of kernels compile, begun in a process of its own once the tests are collected.

Other tests come first and keep one core busy; the compilers have the others. No test depends on
this process: what it left undone, or could not do, a fixture compiles and reports.

    python -m tests.kernels.ahead CACHE FIXTURE ...
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.cuda_resources.resources import compile_all
from tests.kernels.cuda.executor import SOURCES, Executor
from tests.kernels.cuda.host_build import RACES, SANITIZED, HostBuild
from tsugiki_kernels.cpu import build
from tsugiki_kernels.cuda.availability import find_nvrtc
from tsugiki_kernels.errors import BackendUnavailable, CompileFailed

SEEDED = Path(__file__).parent / "cuda" / "seeded"
# avx512 has the code of avx512bf16 but for one product, whose fallback these two run as well
LESSER = [
    level
    for level in build.supported_levels(build.cpu_flags())
    if level.name in ("avx2", "generic")
]


def compile_lesser(cache: Path) -> None:
    """The CPU kernels for lesser processors than this one."""
    for level in LESSER:
        build.load_library(cache / "kernels", prebuilt=cache / "none", processor=level.needs)


def compile_executed(cache: Path) -> None:
    """The CUDA kernels as C++, for the executor."""
    Executor(cache / "shim").build_all()


def compile_seeded(cache: Path) -> None:
    """The seeded bugs, for each sanitizer that is here."""
    for flavour in (SANITIZED, RACES):
        if shutil.which(flavour.compiler):
            HostBuild(SEEDED, SOURCES, cache / "shim", flavour).build_all()


def compile_cubins(cache: Path) -> None:
    """The CUDA kernels for every GPU."""
    compile_all(find_nvrtc(), cache / "kernels")


PARTS: dict[str, Callable[[Path], None]] = {  # by the fixtures that want them
    "executor": compile_executed,
    "launcher": compile_executed,
    "lesser": compile_lesser,
    "seeded": compile_seeded,
    "cubins": compile_cubins,
}


def main(cache: Path, fixtures: Iterable[str]) -> None:
    """Compile what the fixtures want, when nobody else wants the processor."""
    os.nice(5)
    for compile_part in dict.fromkeys(PARTS[name] for name in fixtures):
        with suppress(BackendUnavailable, CompileFailed):  # the fixture will say so
            compile_part(cache)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
