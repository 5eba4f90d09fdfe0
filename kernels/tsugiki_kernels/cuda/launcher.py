"""What an operation needs to start a kernel, and the checks every launch passes first.

Owns: the `Launcher` protocol, the typed scalars, the limits of a launch. Knows neither CuPy nor any
kernel: the GPU's launcher is cuda/cupy_launcher.py, the tests have one that executes the same
sources on the CPU.

Arguments are typed because a kernel's parameters are: a Python int would travel as 64 bits and a
Python float as a double, and the kernel would read rubbish.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument

MAX_THREADS = 1024  # of a block
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)


@dataclass(frozen=True, slots=True)
class Int32:
    """An `int` parameter: a size."""

    value: int

    def __post_init__(self) -> None:
        if not -(2**31) <= self.value < 2**31:
            raise BadArgument(f"{self.value} does not fit into 32 bits")


@dataclass(frozen=True, slots=True)
class Int64:
    """A `long long` parameter: an offset or a stride; a 64-bit seed is its two's complement."""

    value: int

    def __post_init__(self) -> None:
        if not -(2**63) <= self.value < 2**63:
            raise BadArgument(f"{self.value} does not fit into 64 bits")


@dataclass(frozen=True, slots=True)
class Float32:
    """A `float` parameter."""

    value: float


Argument = Tensor | Int32 | Int64 | Float32 | None  # a tensor: its data pointer; None: nullptr


class Launcher(Protocol):
    """Starts kernels by name on one device, in the order of the calls."""

    @property
    def device(self) -> torch.device:
        """Where every tensor of a launch lies."""

    @property
    def multiprocessors(self) -> int:
        """Streaming multiprocessors; a persistent grid is a multiple of them."""

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability (major, minor): (8, 0) is an A100, (9, 0) an H100."""

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Start kernel `name` on the current stream; returns before it is done.

        grid, block: one to three extents. shared_bytes: dynamic shared memory of a block. The
        tensors must live until the work on the stream is done, as with any operation of torch.

        Raises:
            BadArgument: what `check_launch` refuses, an unknown name, or a limit of the device.
        """


def check_launch(
    name: str,
    device: torch.device,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: Sequence[Argument],
) -> None:
    """Refuse what no device can start. Dtypes, shapes and alignment are the operation's to check.

    Raises:
        BadArgument: an extent beyond CUDA's limits, a tensor elsewhere; names the kernel.
    """
    _check_extents(name, "grid", grid, MAX_GRID)
    _check_extents(name, "block", block, MAX_BLOCK)
    threads = torch.Size(block).numel()
    if threads > MAX_THREADS:
        raise BadArgument(f"{name}: a block of {threads} threads, the limit is {MAX_THREADS}")
    for position, argument in enumerate(args):
        if isinstance(argument, Tensor) and argument.device != device:
            raise BadArgument(
                f"{name}: argument {position} lies on {argument.device}, expected {device}"
            )


def _check_extents(name: str, what: str, given: tuple[int, ...], limits: tuple[int, ...]) -> None:
    if not 1 <= len(given) <= 3 or any(
        not 1 <= extent <= limit for extent, limit in zip(given, limits, strict=False)
    ):
        raise BadArgument(
            f"{name}: a {what} of {given}, allowed is 1 to {limits} in each direction"
        )
