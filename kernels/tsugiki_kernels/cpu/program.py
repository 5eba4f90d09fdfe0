"""A recorded step: many operations, one call into C++.

Owns: what an operation is to Python, and running a list of them, mirroring src/program.cpp. Knows
nothing of what they compute.
"""

import ctypes
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch

from tsugiki_kernels.errors import BadArgument


class Operation(NamedTuple):
    """One call of a C entry point that takes the address of one struct."""

    function: str
    arguments: ctypes.Structure
    refusal: str | None = None  # what is wrong when it returns 1; None: it returns nothing
    kept: tuple[Any, ...] = ()  # whatever the struct points to


Step = Operation | Callable[[], object]  # what C++ does not do, torch does in between


class _Entry(ctypes.Structure):
    """src/program.cpp: Operation."""

    _fields_: ClassVar = (
        ("function", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("checks", ctypes.c_int64),
    )


def run(library: ctypes.CDLL, operation: Operation) -> None:
    """One operation by itself.

    Raises:
        BadArgument: it refused its arguments.
    """
    function = getattr(library, operation.function)
    result = function(ctypes.byref(operation.arguments))
    if operation.refusal is not None and result:
        raise BadArgument(operation.refusal)


class Program:
    """Operations in order. It keeps what they point to, whose contents may change between runs."""

    def __init__(self, library: ctypes.CDLL, steps: Sequence[Step]) -> None:
        self._parts: list[Callable[[], object]] = []
        for native, group in groupby(steps, lambda step: isinstance(step, Operation)):
            if native:
                operations = [step for step in group if isinstance(step, Operation)]
                self._parts.append(_native(library, operations))
            else:
                self._parts += [step for step in group if not isinstance(step, Operation)]

    def run(self) -> None:
        """All operations once.

        Raises:
            BadArgument: an operation refused its arguments; those after it did not run.
        """
        for part in self._parts:
            part()


def _native(library: ctypes.CDLL, operations: Sequence[Operation]) -> Callable[[], None]:
    """Consecutive operations as one call. It refers to nothing that refers to it: what a program
    keeps, variants above all, is freed when the program is dropped and not when Python collects."""
    walk, threads = library.tsugiki_run, torch.get_num_threads()
    walk.restype = ctypes.c_int64
    count = ctypes.c_int64(len(operations))
    entries = (_Entry * len(operations))()
    for entry, operation in zip(entries, operations, strict=True):
        function = ctypes.cast(getattr(library, operation.function), ctypes.c_void_p)
        entry.function = function.value
        entry.arguments = ctypes.addressof(operation.arguments)
        entry.checks = operation.refusal is not None

    def run() -> None:
        failed = walk(entries, count, threads)
        if failed >= 0:
            raise BadArgument(operations[failed].refusal)

    return run
