"""Compiled CUDA kernels on disk: ahead of time, or compiled at first use and kept.

Owns: file names, the cache, what is said when it cannot be written. Knows no device; the compiler
is given to it.

A file's name carries a stamp of all that shaped it, so a stale one is never found and two processes
that compile at once write the same bytes to the same name.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from tsugiki_kernels.cuda.sources import stamp
from tsugiki_kernels.errors import BackendUnavailable

PREBUILT = Path(__file__).parent / "prebuilt"

Kind = Literal["cubin", "ptx"]


class Compiler(Protocol):
    """Turns a source into machine code (cubin) or into what drivers compile themselves (ptx)."""

    @property
    def version(self) -> str:
        """Of the compiler: "NVRTC 13.0"."""

    def compile(self, source: Path, architecture: str, kind: Kind) -> bytes:
        """Compile for "sm_90" (cubin) or "compute_120" (ptx).

        Raises:
            CompileFailed: with the compiler's message.
        """


def fatbin_name(source: Path) -> str:
    """The ahead-of-time file of a source: every architecture in one."""
    return f"tsugiki-cuda-{source.stem}-{stamp(source)}.fatbin"


class Binaries:
    """Where a launcher finds the module of a source for one architecture."""

    def __init__(
        self, cache_dir: Path, find_compiler: Callable[[], Compiler], prebuilt: Path = PREBUILT
    ) -> None:
        """`find_compiler` is asked only when something has to be compiled.

        It may raise BackendUnavailable.
        """
        self._cache_dir = cache_dir
        self._find_compiler = find_compiler
        self._prebuilt = prebuilt

    def prebuilt(self, source: Path) -> Path | None:
        """The ahead-of-time fatbin of this very source, where there is one."""
        path = self._prebuilt / fatbin_name(source)
        return path if path.exists() else None

    def compiled(self, source: Path, architecture: str) -> Path:
        """The cubin for "sm_90", compiled now unless an earlier process did.

        Raises:
            BackendUnavailable: no compiler, or the cache cannot be written.
            CompileFailed: the compiler rejected the source.
        """
        compiler = self._find_compiler()
        mark = stamp(source, compiler.version, architecture)
        path = self._cache_dir / f"tsugiki-cuda-{source.stem}-{architecture}-{mark}.cubin"
        if not path.exists():
            write_whole(path, compiler.compile(source, architecture, "cubin"))
        return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all.

    Raises:
        BackendUnavailable: the directory cannot be written; names it and the remedy.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".build-", delete=False) as file:
            file.write(content)
        os.chmod(file.name, 0o644)  # an image is built by another user than the one that serves
        os.replace(file.name, path)
    except OSError as error:
        raise BackendUnavailable(
            f"cannot write compiled CUDA kernels to {path.parent}: {error.strerror}; set "
            "TSUGIKI_CACHE to a directory that can be written, or build them ahead of time "
            "(tsugiki kernels build)"
        ) from error
