"""One extent of memory for all that a variant owns: tensors side by side, one copy for each run.

Owns: where each tensor lies and how it gets there. Host memory alone. Knows nothing of deltas.

Tensors are ordered by the width of their elements, so that each is aligned to its own without
padding, and then by address: views of one blob of a file stay neighbours and are copied at once.
Where kernels load 16 bytes at a time every tensor is aligned to that, with padding.
"""

import ctypes
from collections.abc import Callable, Iterable
from copy import copy

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Allocate

ALIGNMENT = 64  # of the extent
SLACK = 16  # bytes that a kernel may read past the end of a tensor

Key = tuple[int, int]  # address and bytes of a tensor as it came: equal for the same values


class Extent:
    """Contiguous tensors copied into one allocation; `head` bytes at its start are left free."""

    def __init__(
        self, tensors: Iterable[Tensor], head: int, allocate: Allocate, alignment: int = 1
    ) -> None:
        """Copy the tensors, each to a multiple of `alignment`. What comes twice is copied once.

        Raises:
            BadArgument: memory that is too small or not aligned, or a tensor not on the CPU.
        """
        found = {_key(tensor): tensor.itemsize for tensor in tensors}
        order = sorted(found, key=lambda key: (-found[key], key))
        self._offsets: dict[Key, int] = {}
        end = head
        for key in order:
            end = -(-end // alignment) * alignment
            self._offsets[key] = end
            end += key[1]
        self._follow: Callable[[Tensor], Tensor] = _itself
        self.memory = _allocated(allocate, -(-(end + SLACK) // ALIGNMENT) * ALIGNMENT)
        self.address = self.memory.data_ptr()
        for source, offset, nbytes in self._runs():
            ctypes.memmove(self.address + offset, source, nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole extent."""
        return self.memory.numel()

    def address_of(self, tensor: Tensor) -> int:
        """Where the values of this tensor lie now."""
        return self.address + self._offsets[_key(tensor)]

    def moved(self, tensor: Tensor) -> Tensor:
        """The same tensor in the extent, which it keeps alive."""
        if not tensor.numel():
            return tensor.to(self.memory.device)
        offset = self._offsets[_key(tensor)]
        span = self.memory[offset : offset + tensor.nbytes]
        return self._follow(span.view(tensor.dtype).view(tensor.shape))

    def at(self, memory: Tensor, follow: Callable[[Tensor], Tensor]) -> "Extent":
        """The same tensors in other memory, which holds the same bytes, on whatever device.

        `follow` is told each tensor that `moved` gives out there, and returns it.
        """
        elsewhere = copy(self)
        elsewhere.memory, elsewhere.address = memory, memory.data_ptr()
        elsewhere._follow = follow
        return elsewhere

    def write(self, offset: int, content: bytes) -> None:
        """Put bytes into the head."""
        ctypes.memmove(self.address + offset, content, len(content))

    def words(self, nbytes: int) -> Tensor:
        """int64: a copy of the beginning."""
        return self.memory[:nbytes].view(torch.int64).clone()

    def _runs(self) -> list[tuple[int, int, int]]:
        """(source address, offset, bytes) of tensors that are neighbours before and after."""
        runs: list[tuple[int, int, int]] = []
        for (source, nbytes), offset in self._offsets.items():
            first, begin, length = runs[-1] if runs else (0, 0, 0)
            if runs and (first + length, begin + length) == (source, offset):
                runs[-1] = (first, begin, length + nbytes)
            else:
                runs.append((source, offset, nbytes))
        return runs


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _key(tensor: Tensor) -> Key:
    if not tensor.is_cpu:
        raise BadArgument(f"parts: expected tensors on the CPU, found one on {tensor.device}")
    return tensor.data_ptr(), tensor.nbytes


def _allocated(allocate: Allocate, nbytes: int) -> Tensor:
    memory = allocate(nbytes)
    if memory.dtype != torch.uint8 or memory.shape != (nbytes,) or memory.data_ptr() % ALIGNMENT:
        raise BadArgument(
            f"allocate: expected uint8 [{nbytes}] aligned to {ALIGNMENT}, found {memory.dtype} "
            f"{list(memory.shape)} at {memory.data_ptr():#x}"
        )
    return memory
