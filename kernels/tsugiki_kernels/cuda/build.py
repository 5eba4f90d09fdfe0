"""`tsugiki kernels build` for GPUs: a fatbin per source, with a cubin per architecture and PTX.

Needs NVRTC and nvFatbin, no GPU. It is the compiler and are the options of the first use, so what
an image carries is what a server would have compiled. Newer GPUs compile the PTX themselves.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tsugiki_kernels.cuda.binaries import PREBUILT, Compiler, fatbin_name, write_whole
from tsugiki_kernels.cuda.fatbin import pack
from tsugiki_kernels.cuda.requirements import ARCHITECTURES
from tsugiki_kernels.cuda.sources import OPTIONS, sources, stamp
from tsugiki_kernels.errors import BackendUnavailable

MANIFEST = "tsugiki-cuda.json"

__all__ = ["MANIFEST", "PREBUILT", "build_all", "parse_architectures"]


def parse_architectures(text: str) -> tuple[str, ...]:
    """ "sm_80,sm_90" as a tuple, oldest first.

    Raises:
        BackendUnavailable: an architecture that the kernels are not written for.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in found if name not in ARCHITECTURES]
    if unknown or not found:
        raise BackendUnavailable(
            f"--arch {text!r}: choose some of {', '.join(ARCHITECTURES)}, separated by commas"
        )
    return tuple(name for name in ARCHITECTURES if name in found)


def build_all(
    out: Path, compiler: Compiler, architectures: Sequence[str] = ARCHITECTURES
) -> list[Path]:
    """Compile every source into `out`, and say there what was built with what.

    Such files are found when they lie in `PREBUILT`.

    Raises:
        BackendUnavailable: nvFatbin is missing, `out` cannot be written.
        CompileFailed: the compiler rejected a source.
    """
    newest = architectures[-1].replace("sm_", "compute_")

    def built(source: Path) -> tuple[Path, dict[str, object]]:
        cubins = {name: compiler.compile(source, name, "cubin") for name in architectures}
        ptx = compiler.compile(source, newest, "ptx")
        path = out / fatbin_name(source)
        write_whole(path, pack(cubins, {newest: ptx}))
        return path, {"source": source.name, "stamp": stamp(source), "kernels": _names(ptx)}

    with ThreadPoolExecutor() as pool:  # the compiler releases the interpreter
        modules = dict(pool.map(built, sources()))
    manifest = {
        "compiler": compiler.version,
        "options": OPTIONS,
        "architectures": [*architectures, newest],
        "modules": {path.name: module for path, module in modules.items()},
    }
    write_whole(out / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    return [*modules, out / MANIFEST]


def _names(ptx: bytes) -> list[str]:
    """The kernels of a module, as its PTX declares them."""
    return re.findall(r"\.entry\s+(\w+)", ptx.decode())
