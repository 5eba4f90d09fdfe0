"""The CUDA sources: where they are, and the stamp of a compiled one.

Owns: `src/` and how it is read. Knows no compiler and no device. One source is one module;
kernels.py says which kernels it has.
"""

import hashlib
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
# what CuPy gives NVRTC by itself; -ftz: float denormals of divisions and roots are zero
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")


def sources() -> list[Path]:
    """Every module's source, in order of name."""
    return sorted(SOURCES.glob("*.cu"))


def stamp(source: Path, *more: str) -> str:
    """16 hex digits over a source, all headers, the options, and whatever else shapes a binary."""
    digest = hashlib.sha256(repr((OPTIONS, more)).encode())
    for path in (source, *sorted(SOURCES.glob("*.cuh"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
