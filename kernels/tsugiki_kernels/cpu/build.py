"""From C++ sources to a loaded library, on first use or ahead of time.

Owns: instruction-set levels, compiler flags, file names, the cache. Knows nothing of tensors.

A library's name carries a digest of all that shaped it, so a stale one is never found and two
processes that build at once write the same bytes to the same name. Libraries leave the OpenMP
symbols undefined: they bind to the runtime that torch has loaded, and the process has one pool.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: F401  (loads the OpenMP runtime that our libraries bind to)

from tsugiki_kernels.errors import BackendUnavailable, CompileFailed

SOURCES = Path(__file__).parent / "src"
PREBUILT = Path(__file__).parent / "prebuilt"
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-ffp-contract=off", "-Wno-psabi")
COMPILE_SECONDS = 300

FindCompiler = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Level:
    """An instruction set that we compile for, and the /proc/cpuinfo flags that it needs."""

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_BF16 = _AVX512 | {"avx512_bf16", "avx512vbmi"}  # one processor has the former without the latter
LEVELS = (  # best first
    Level("avx512bf16", ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi"), _BF16),
    Level("avx512", ("-march=x86-64-v4",), _AVX512),
    Level("avx2", ("-march=x86-64-v3",), _AVX2),
    Level("generic", ("-O2",), frozenset()),  # -O3 compiles twice as long for nothing here
)


def find_compiler() -> str | None:
    """The path of g++, or None. (clang's OpenMP calls another runtime than torch's.)"""
    return shutil.which("g++")


def cpu_flags() -> frozenset[str]:
    """What this processor can do, by the names of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def supported_levels(flags: frozenset[str]) -> list[Level]:
    """The levels that a processor with these flags can run, best first."""
    return [level for level in LEVELS if level.needs <= flags]


def build_all(out: Path, find_compiler: FindCompiler = find_compiler) -> list[Path]:
    """Compile every level into `out`, for images without a compiler.

    Such files are found when they lie in `PREBUILT`.

    Raises:
        BackendUnavailable: no compiler.
        CompileFailed: the compiler rejected the sources.
    """
    compiler = _require(find_compiler())
    paths = [out / file_name(level) for level in LEVELS]
    for level, path in zip(LEVELS, paths, strict=True):
        compile_library(compiler, level, path)
    return paths


def load_library(
    cache_dir: Path,
    find_compiler: FindCompiler = find_compiler,
    prebuilt: Path = PREBUILT,
    processor: frozenset[str] | None = None,
) -> tuple[ctypes.CDLL, Level]:
    """The best library that a processor with these flags (None: this one) runs: ahead-of-time,
    cached, or compiled now.

    Raises:
        BackendUnavailable: neither a library nor a compiler, or no OpenMP runtime.
        CompileFailed: the compiler rejected the sources.
    """
    levels = supported_levels(cpu_flags() if processor is None else processor)
    path, level = _library(levels, cache_dir, find_compiler, prebuilt)
    ctypes.CDLL(_openmp_runtime(), mode=ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(str(path)), level
    except OSError as error:
        raise BackendUnavailable(f"cannot load {path}: {error}; delete it to rebuild") from error


def _library(
    levels: list[Level], cache_dir: Path, find_compiler: FindCompiler, prebuilt: Path
) -> tuple[Path, Level]:
    for level in levels:
        path = prebuilt / file_name(level)
        if path.exists():
            return path, level
    compiler = _require(find_compiler())
    path = cache_dir / file_name(levels[0], _version(compiler))
    if not path.exists():
        compile_library(compiler, levels[0], path)
    return path, levels[0]


def compile_library(compiler: str, level: Level, path: Path) -> None:
    """Compile and link all sources into `path`, which appears complete or not at all.

    Raises:
        CompileFailed: with the compiler's message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [f"{folder}/{source.stem}.o" for source in sources]
        commands = [
            [compiler, *FLAGS, *level.flags, "-c", str(source), "-o", made]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        library = f"{folder}/library.so"
        _run([compiler, "-shared", *objects, "-o", library])
        os.replace(library, path)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
    except subprocess.CalledProcessError as error:
        message = error.stderr.decode(errors="replace").strip()
        raise CompileFailed(f"{' '.join(command)} failed:\n{message}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileFailed(f"{' '.join(command)} failed: {error}") from error


def _require(compiler: str | None) -> str:
    if compiler is None:
        raise BackendUnavailable(
            "the CPU kernels need g++ (Debian: apt install g++) or libraries built ahead of time "
            "(tsugiki kernels build); without either, choose the reference kernels"
        )
    return compiler


def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30)
    return done.stdout


def file_name(level: Level, compiler_version: str = "") -> str:
    digest = hashlib.sha256(repr((FLAGS, level.flags, compiler_version)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"tsugiki-cpu-{level.name}-{digest.hexdigest()[:16]}.so"


def _openmp_runtime() -> str:
    """Path of the OpenMP runtime in this process: the one that torch brought."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise BackendUnavailable(f"the CPU kernels need Linux: {error}") from error
    found = re.search(r"/\S*/lib(?:gomp|iomp5)[-.\w]*\.so[.\d]*$", maps, re.MULTILINE)
    if found is None:
        raise BackendUnavailable("torch loaded no OpenMP runtime (libgomp or libiomp5)")
    return found.group(0)
