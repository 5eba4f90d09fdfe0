"""Libraries: found ahead of time, compiled once, complete or absent, one OpenMP pool."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tsugiki_kernels.cpu import build
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.errors import BackendUnavailable

pytestmark = pytest.mark.compiler


def test_a_library_is_compiled_once_and_named_by_what_made_it(compiled: Path) -> None:
    first = CpuBackend(compiled, prebuilt=compiled / "none")
    files = sorted(compiled.glob(f"tsugiki-cpu-{first.level}-*.so"))
    stamps = [path.stat().st_mtime_ns for path in files]
    assert files
    CpuBackend(compiled, prebuilt=compiled / "none")
    again = sorted(compiled.glob(f"tsugiki-cpu-{first.level}-*.so"))
    assert [path.stat().st_mtime_ns for path in again] == stamps


def test_the_digest_tells_levels_and_compilers_apart() -> None:
    names = {build.file_name(level, version) for level in build.LEVELS for version in ("", "12")}
    assert len(names) == 2 * len(build.LEVELS)
    assert all(re.fullmatch(r"tsugiki-cpu-\w+-[0-9a-f]{16}\.so", name) for name in names)


def test_ahead_of_time_libraries_serve_without_a_compiler(compiled: Path, tmp_path: Path) -> None:
    level = build.supported_levels(build.cpu_flags())[0]
    CpuBackend(compiled, prebuilt=compiled / "none")
    libraries = compiled.glob(f"tsugiki-cpu-{level.name}-*.so")  # of older sources too
    made = max(libraries, key=lambda path: path.stat().st_mtime_ns)
    (tmp_path / build.file_name(level)).write_bytes(made.read_bytes())
    backend = CpuBackend(tmp_path / "cache", find_compiler=lambda: None, prebuilt=tmp_path)
    assert backend.level == level.name
    assert not (tmp_path / "cache").exists()


def test_build_all_compiles_every_level_with_the_given_compiler(tmp_path: Path) -> None:
    """A stand-in compiler that records its flags and writes its output: the real one is slow."""
    compiler = tmp_path / "g++"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        'while [ "$1" != "-o" ]; do shift; done\necho made > "$2"\n'
    )
    compiler.chmod(0o755)
    out = tmp_path / "out"
    paths = build.build_all(out, lambda: str(compiler))
    assert [path.name.split("-")[2] for path in paths] == [level.name for level in build.LEVELS]
    assert sorted(out.iterdir()) == sorted(paths)
    calls = (tmp_path / "calls").read_text()
    assert "-march=x86-64-v3" in calls
    assert "-mavx512bf16" in calls


def test_two_builds_at_once_leave_one_complete_library(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != "-o" ]; do shift; done\necho made > "$2"\n')
    compiler.chmod(0o755)
    path = tmp_path / "cache" / "library.so"
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(
            lambda _: build.compile_library(str(compiler), build.LEVELS[-1], path), range(2)
        ):
            pass
    assert [p.name for p in path.parent.iterdir()] == ["library.so"]
    assert path.read_text() == "made\n"


def test_a_damaged_library_is_refused_by_name(tmp_path: Path) -> None:
    level = build.supported_levels(build.cpu_flags())[0]
    (tmp_path / build.file_name(level)).write_bytes(b"not a library")
    with pytest.raises(BackendUnavailable, match=r"cannot load .*tsugiki-cpu.*delete it"):
        CpuBackend(tmp_path, prebuilt=tmp_path)


def test_the_process_has_one_openmp_runtime(cpu_backend: CpuBackend) -> None:
    runtimes = set(re.findall(r"/\S*lib(?:gomp|iomp|omp)\S*", Path("/proc/self/maps").read_text()))
    assert len(runtimes) == 1, runtimes
    assert "torch" in runtimes.pop()


def test_the_kernels_load_in_a_fresh_process_with_threads(compiled: Path) -> None:
    program = (
        "import torch; torch.set_num_threads(2)\n"
        "from pathlib import Path\n"
        "from tsugiki_kernels.cpu.backend import CpuBackend\n"
        "from tsugiki_kernels.deltas import Placed, DenseDelta\n"
        f"backend = CpuBackend(Path({str(compiled)!r}))\n"
        "part = Placed(0, DenseDelta((2000, 512), torch.ones(2000, 512), None))\n"
        "out = torch.zeros(9, 2000)\n"
        "backend.apply(torch.ones(9, 512), out, [backend.stage([part])], [(0, 9)])\n"
        "print(out.unique().tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[512.0]\n", done.stderr
