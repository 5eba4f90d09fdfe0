"""The memory that a backend sets aside for variants, as the engine sees it.

Owns: the two things an engine needs of it. How it is divided is the backend's.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class RoomStats:
    """A buffer of variants now; moves are counted since start."""

    nbytes: int
    free_bytes: int
    largest_free_bytes: int  # in one piece; much less than all that is free: fragmented
    beside_bytes: int  # of variants that found no room in it, yet
    moves: int
    moved_bytes: int


class VariantRoom(Protocol):
    """One buffer for all variants."""

    def arrange(self) -> None:
        """Between two steps, on the engine's thread: move variants, where that makes room for one
        that has none. Steps that were asked for before and after see them where they are."""

    def stats(self) -> RoomStats:
        """Any thread may ask."""


@runtime_checkable
class ReservesRoom(Protocol):
    """What a backend offers beside KernelBackend when its variants share one buffer."""

    def reserve(self, nbytes: int) -> VariantRoom:
        """Set so much aside, once, before the first variant is staged."""
