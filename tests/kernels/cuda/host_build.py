"""CUDA sources compiled as C++ against the host shim, one shared library per source.

Owns: compilers, flags, flavours, the cache. Knows nothing of tensors and launches. A library's name
carries a digest of all that shaped it; the cache lies outside the tree.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tsugiki_kernels.errors import BackendUnavailable, CompileFailed

SHIM = Path(__file__).parent / "shim"
RUNTIME = ("block.cpp", "fiber.cpp")
# Kernels pun types through vector loads, and round where CUDA rounds: at every explicit fmaf.
FLAGS = (
    *("-std=c++17", "-fPIC", "-g", "-fvisibility=hidden", "-Wno-unknown-pragmas"),
    *("-fno-strict-aliasing", "-ffp-contract=off", "-mfma", "-mf16c", "-DHOST_SHIM"),
)
KERNEL = re.compile(r'extern\s+"C"\s+void\s+(\w+)\s*\(')
COMPILE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Flavour:
    """A compiler and what it instruments the kernels with (never the runtime)."""

    name: str
    compiler: str
    instruments: tuple[str, ...]
    runtime: tuple[str, ...]  # tells the runtime what surrounds it
    preload: str | None  # the library, of g++, that Python must have loaded first


PLAIN = Flavour("plain", "g++", ("-O2",), ("-O2",), None)
SANITIZED = Flavour(
    "sanitized",
    "g++",
    (
        *("-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
        "-fno-sanitize-recover=all",
    ),
    ("-O2", "-DSHIM_ASAN"),
    "libasan.so",
)
RACES = Flavour(
    "races",
    "clang++-14",  # gcc 12 misses 2-byte stores of a call's result
    ("-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"),
    ("-O2", "-DSHIM_TSAN"),
    "libtsan.so",  # clang 14's own is no library to preload: it crashes any process
)
FLAVOURS = {flavour.name: flavour for flavour in (PLAIN, SANITIZED, RACES)}


def preload_path(flavour: Flavour) -> Path | None:
    """The file for LD_PRELOAD, or None where none is needed.

    Raises:
        BackendUnavailable: g++ or its library is not installed.
    """
    if flavour.preload is None:
        return None
    _require("g++")
    found = Path(_output(["g++", f"-print-file-name={flavour.preload}"]).strip())
    if not found.is_absolute():
        raise BackendUnavailable(f"g++ has no {flavour.preload}")
    return found


@dataclass(frozen=True, slots=True)
class HostBuild:
    """Where sources come from, what they are compiled with, where libraries go."""

    sources: Path  # a folder of .cu, with headers beside them
    headers: Path  # the folder of prelude.cuh
    cache: Path
    flavour: Flavour = PLAIN
    architecture: int = 800  # what wrappers fork by, as __CUDA_ARCH__

    def kernel_names(self, source: Path) -> list[str]:
        """The `extern "C"` kernels of a source, those that macros define included.

        Raises:
            CompileFailed: the preprocessor's message.
        """
        listing = self.cache / f"{source.stem}-{self._digest(source, self._command())}.names"
        if not listing.exists():
            text = _output([*self._command(), "-E", "-P", "-x", "c++", str(source)])
            _write(listing, "\n".join(dict.fromkeys(KERNEL.findall(text))))
        return listing.read_text().split()

    def build_all(self) -> None:
        """Compile in parallel what is not cached. A failure shows when its library is wanted."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for job in [pool.submit(self.library, s) for s in sorted(self.sources.glob("*.cu"))]:
                job.exception()

    def library(self, source: Path) -> Path:
        """The shared library of one source, compiled now or before.

        Raises:
            CompileFailed: the compiler's message.
            BackendUnavailable: no compiler.
        """
        command = [*self._command(), *self.flavour.instruments]
        path = self.cache / f"{source.stem}-{self._digest(source, command)}.so"
        with _locked(path):
            if not path.exists():
                self._compile(source, command, path)
        return path

    def _compile(self, source: Path, command: Sequence[str], path: Path) -> None:
        names = self.kernel_names(source)
        registrations = "".join(
            f'static const shim::Registration register_{name}("{name}", &{name});\n'
            for name in names
        )
        with tempfile.TemporaryDirectory(prefix="tsugiki-shim-") as folder:
            unit = Path(folder) / "unit.cpp"
            unit.write_text(f'#include "{source}"\n#include "kernels.h"\n{registrations}')
            made = f"{folder}/library.so"
            _output([*command, "-shared", str(unit), *map(str, self._runtime()), "-o", made])
            _move(Path(made), path)

    def _command(self) -> list[str]:
        _require(self.flavour.compiler)
        include = (f"-I{SHIM}", f"-I{self.headers}", f"-I{self.sources}")
        return [self.flavour.compiler, *FLAGS, f"-DSHIM_ARCH={self.architecture}", *include]

    def _runtime(self) -> list[Path]:
        command = [self.flavour.compiler, *FLAGS, *self.flavour.runtime]
        objects = []
        for name in RUNTIME:
            source = SHIM / name
            path = self.cache / f"{source.stem}-{self._digest(source, command)}.o"
            if not path.exists():
                with tempfile.TemporaryDirectory(prefix="tsugiki-shim-") as folder:
                    made = Path(folder) / path.name
                    _output([*command, "-c", str(source), "-o", str(made)])
                    _move(made, path)
            objects.append(path)
        return objects

    def _digest(self, source: Path, command: Sequence[str]) -> str:
        headers = sorted({*self.headers.glob("*.cuh"), *self.sources.glob("*.cuh")})
        digest = hashlib.sha256(repr(command).encode() + _version(command[0]).encode())
        for path in (source, *headers, *sorted(SHIM.iterdir())):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:16]


def _require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        raise BackendUnavailable(f"no {compiler} on the PATH")


@cache
def _version(compiler: str) -> str:
    return _output([compiler, "--version"])


def _output(command: Sequence[str]) -> str:
    # A sanitizer that was preloaded into Python is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMPILE_SECONDS, env=environment
    )
    if done.returncode != 0:
        raise CompileFailed(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time makes this file, the others wait for it; one thread at a time too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _move(made: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(made.read_bytes())
    os.replace(file.name, path)
