"""One piece of memory for many tensors that live as long as it, on huge pages where there are any.

Weights and KV blocks are read from end to end in every step; with pages of 4 KiB the processor
spends some five percent of it on looking up where they are. Does not know: what the tensors hold.
"""

import math
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
Take = Callable[[tuple[int, ...], torch.dtype], Tensor]  # memory for a tensor: `Slab.take`


class Slab:
    """Hands out tensors one after the other from a piece of zeroed memory of a given size."""

    def __init__(self, nbytes: int, device: torch.device | str) -> None:
        """`nbytes`: the sum of the `room` of what it is for."""
        on_cpu = torch.device(device).type == "cpu"
        self._memory = (
            _pages(nbytes) if on_cpu else torch.zeros(nbytes, dtype=torch.uint8, device=device)
        )
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of zeros.

        Raises:
            ValueError: the slab is used up.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if self._used + nbytes > len(self._memory):
            left = len(self._memory) - self._used
            raise ValueError(f"{nbytes} bytes wanted of a slab with {left} left")
        part = self._memory[self._used : self._used + nbytes]
        self._used += room(shape, dtype)
        return part.view(dtype).view(shape)


def below(take: Take, tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one dtype below each other, copied into memory that may be on another device."""
    first = tensors[0]
    out = take((sum(map(len, tensors)), *first.shape[1:]), first.dtype)
    at = 0
    for tensor in tensors:
        out[at : at + len(tensor)].copy_(tensor)
        at += len(tensor)
    return out


def room(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that a tensor takes of a slab."""
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _pages(nbytes: int) -> Tensor:
    """uint8 [nbytes] straight from the system, which gives each page when it is first touched."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
