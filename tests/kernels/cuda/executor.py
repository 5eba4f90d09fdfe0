"""A Launcher that runs CUDA kernels on the CPU: the GPU-less stand-in for the one of CuPy.

Owns: finding a kernel by name, passing its arguments, the order threads run in. The shim beside it
(shim/) plays the GPU; host_build.py compiles. Tensors are CPU tensors, passed by data pointer, so
a work list in a tensor may point at other tensors as it does on the device.
"""

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tests.kernels.cuda.host_build import PLAIN, Flavour, HostBuild
from tsugiki_kernels.cuda.launcher import Argument, Float32, Int32, Int64, check_launch
from tsugiki_kernels.errors import BadArgument

SOURCES = Path(__file__).parents[3] / "kernels/tsugiki_kernels/cuda/src"
Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "random")
# Shared memory that one block may take, CUDA C++ Programming Guide, "Compute Capabilities".
SHARED_LIMITS = {(7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227}


class KernelFault(Exception):
    """A kernel did what no GPU would do well; names kernel, block, thread and source line."""


@dataclass(frozen=True, slots=True)
class _Kernel:
    library: ctypes.CDLL
    index: int
    parameters: str


@dataclass(slots=True)
class Executor:
    """Executes the kernels of a folder; one launch at a time, done when `launch` returns."""

    cache: Path
    flavour: Flavour = PLAIN
    order: Order = "forward"
    seed: int = 1
    capability: tuple[int, int] = (8, 0)
    multiprocessors: int = 4
    sources: Path = SOURCES
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _kernels: dict[str, _Kernel] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def build_all(self) -> None:
        """Compile every source that is not in the cache."""
        self._build().build_all()

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """As `Launcher.launch`.

        Raises:
            KernelFault: the shim found an error in the kernel.
            CompileFailed: the kernel's source is not C++.
        """
        check_launch(name, self.device, grid, block, args)
        with self._lock:
            kernel = self._kernel(name)
            _check_parameters(name, kernel.parameters, args)
            message = kernel.library.shim_launch(
                kernel.index,
                _extents(grid),
                _extents(block),
                (ctypes.c_uint64 * max(len(args), 1))(*map(_word, args)),
                shared_bytes,
                1024 * SHARED_LIMITS[self.capability],
                ORDERS.index(self.order),
                self.seed,
            )
        if message is not None:
            raise KernelFault(f"{name}: {message.decode()}")

    def _build(self) -> HostBuild:
        major, minor = self.capability
        architecture = 100 * major + 10 * minor
        return HostBuild(self.sources, SOURCES, self.cache, self.flavour, architecture)

    def _kernel(self, name: str) -> _Kernel:
        if name not in self._kernels:
            build = self._build()
            for source in sorted(self.sources.glob("*.cu")):
                if name in build.kernel_names(source):
                    self._kernels.update(_load(build.library(source)))
        if name not in self._kernels:
            raise BadArgument(f"{name}: no such kernel in {self.sources}")
        return self._kernels[name]


def _load(path: Path) -> dict[str, _Kernel]:
    library = ctypes.CDLL(str(path))
    library.shim_kernels.restype = ctypes.c_char_p
    library.shim_launch.restype = ctypes.c_char_p
    library.shim_launch.argtypes = [
        *(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int32, ctypes.c_uint64),
    ]
    lines = library.shim_kernels().decode().splitlines()
    named = (line.split(" ") for line in lines)
    return {name: _Kernel(library, i, letters) for i, (name, letters) in enumerate(named)}


def _check_parameters(name: str, parameters: str, args: Sequence[Argument]) -> None:
    given = "".join(_letter(argument) for argument in args)
    if given != parameters:
        raise BadArgument(
            f"{name}: takes {parameters!r}, was given {given!r} "
            "(p: tensor, i: 32-bit integer, l: 64-bit integer, f: float)"
        )


def _letter(argument: Argument) -> str:
    match argument:
        case Int32():
            return "i"
        case Int64():
            return "l"
        case Float32():
            return "f"
        case _:
            return "p"


def _word(argument: Argument) -> int:
    match argument:
        case None:
            return 0
        case Tensor():
            return argument.data_ptr()
        case Float32():
            return int.from_bytes(struct.pack("<f", argument.value), "little")
        case _:
            return argument.value & (2**64 - 1)


def _extents(extents: tuple[int, ...]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 3)(*extents, *(1,) * (3 - len(extents)))
