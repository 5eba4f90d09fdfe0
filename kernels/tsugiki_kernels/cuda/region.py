"""One extent of device memory as its users see it: where it lies now, and what follows it there.

Owns: the tensors over it and the addresses in the records at its start. Does not know who else has
memory (arena.py), nor when anything moves.

Whoever has a tensor over a region keeps the region; the arena does not. So a variant's memory is
free when its last tensor is gone, whether it was evicted, cancelled or failed.
"""

import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki_kernels.device import Device

NO_WORDS = torch.empty(0, dtype=torch.int64)


class Shift(NamedTuple):
    """Bytes that went elsewhere."""

    source: int  # addresses
    target: int
    nbytes: int


class Region:
    """`nbytes` of device memory at `address`, which changes between steps only."""

    def __init__(self, device: Device, address: int, nbytes: int, backing: object) -> None:
        """`backing`: keeps memory of its own alive."""
        self.address = address
        self.nbytes = nbytes
        self._device = device
        self._backing = backing
        self._followers: list[weakref.ref[Tensor]] = []
        self._head = NO_WORDS  # the records at the start, as they are on the device
        self._pointers = NO_WORDS  # which of these words are addresses

    def version(self) -> int:
        """Another one when it moved: what was made for its address is not valid."""
        return self.address

    def memory(self) -> Tensor:
        """uint8 [nbytes], where it is now; keeps the region, does not follow it."""
        return self._device.view(self.address, self.nbytes, self)

    def follow(self, view: Tensor) -> Tensor:
        """The same tensor, a contiguous view of this memory: it will be wherever that goes."""
        self._followers.append(weakref.ref(view))
        return view

    def has_records(self, head: Tensor, pointers: Tensor) -> None:
        """int64 words at the start, and int64 places of those that are addresses."""
        self._head, self._pointers = head, pointers

    def move(self, address: int, backing: object) -> Shift:
        """It lies there from now on; whoever calls has it copied."""
        shift = Shift(self.address, address, self.nbytes)
        self.address, self._backing = address, backing
        memory = self.memory()
        followers = [(ref, view) for ref in self._followers if (view := ref()) is not None]
        for _, view in followers:
            begin = view.data_ptr() - shift.source
            there = memory[begin : begin + view.nbytes].view(view.dtype).view(view.shape)
            view.set_(there)  # type: ignore[call-overload]
        self._followers = [ref for ref, _ in followers]
        return shift

    def redirect(self, shifts: "Shifts") -> Tensor | None:
        """The records with the addresses of what moved; None: none of them did."""
        if not len(self._pointers):
            return None
        before = self._head[self._pointers]
        after = shifts.of(before)
        if torch.equal(before, after):
            return None
        self._head[self._pointers] = after
        return self._head


class Shifts:
    """Moves, at least one, that happened together: their sources do not overlap."""

    def __init__(self, shifts: list[Shift]) -> None:
        columns = torch.tensor(sorted(shifts)).view(-1, 3).T.contiguous()
        self._starts, targets, lengths = columns
        self._ends = self._starts + lengths
        self._by = targets - self._starts

    def of(self, addresses: Tensor) -> Tensor:
        """int64 addresses after the moves; others stay as they are."""
        at = torch.searchsorted(self._starts, addresses, right=True) - 1
        inside = (at >= 0) & (addresses < self._ends[at])
        return addresses + torch.where(inside, self._by[at], 0)
