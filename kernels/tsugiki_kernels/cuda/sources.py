"""The CUDA sources: where they are, which of them holds a kernel, the stamp of a compiled one.

Owns: `src/` and how it is read. Knows no compiler and no device.

One source is one module. A kernel's name is written out in its source, or put together there by a
macro from a prefix that is written out (`tsugiki_gate_##dtype`), so the text says where it is.
"""

import hashlib
import re
from pathlib import Path

from tsugiki_kernels.errors import BadArgument

SOURCES = Path(__file__).parent / "src"
# what CuPy gives NVRTC by itself; -ftz: float denormals of divisions and roots are zero
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")


def sources() -> list[Path]:
    """Every module's source, in order of name."""
    return sorted(SOURCES.glob("*.cu"))


def source_of(kernel: str) -> Path:
    """The source that defines a kernel.

    Raises:
        BadArgument: none does.
    """
    found = max(((_match(kernel, source), source) for source in sources()), default=(0, SOURCES))
    if not found[0]:
        raise BadArgument(f"{kernel}: no source of {SOURCES} has a kernel of this name")
    return found[1]


def _match(kernel: str, source: Path) -> int:
    """Length of the longest name, or prefix of names, in a source that the kernel begins with."""
    written = set(re.findall(r"\btsugiki_\w+", source.read_text()))
    fits = (w for w in written if w == kernel or (w.endswith("_") and kernel.startswith(w)))
    return max(map(len, fits), default=0)


def stamp(source: Path, *more: str) -> str:
    """16 hex digits over a source, all headers, the options, and whatever else shapes a binary."""
    digest = hashlib.sha256(repr((OPTIONS, more)).encode())
    for path in (source, *sorted(SOURCES.glob("*.cuh"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
