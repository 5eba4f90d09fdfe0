"""Which bytes of one buffer belong to whom: a slot is a number, its extent may move.

Owns: offsets, gaps, and the plan that closes the gaps. Knows neither memory nor variants.
"""

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from tsugiki_kernels.errors import BadArgument


class Extent(NamedTuple):
    """Bytes `offset : offset + nbytes` of the buffer."""

    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.nbytes


class Move(NamedTuple):
    """The extent of a slot goes from `source` to `target`, which may overlap."""

    slot: int
    source: int
    target: int
    nbytes: int


class SlotTable:
    """Extents of a buffer of so many bytes; they never overlap."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._extents: dict[int, Extent] = {}
        self._gaps = [Extent(0, nbytes)] if nbytes else []  # ascending, no two side by side

    def __contains__(self, slot: int) -> bool:
        return slot in self._extents

    @property
    def free(self) -> int:
        """Bytes of all gaps."""
        return sum(gap.nbytes for gap in self._gaps)

    @property
    def largest_gap(self) -> int:
        """Bytes of the longest."""
        return max((gap.nbytes for gap in self._gaps), default=0)

    def offset(self, slot: int) -> int:
        """Where the extent of a slot begins."""
        return self._extents[slot].offset

    def take(self, slot: int, nbytes: int) -> bool:
        """Give a new slot the beginning of the shortest gap that is long enough, the first of
        equals; False: there is none.

        Raises:
            BadArgument: a slot that has an extent, or no bytes.
        """
        if slot in self._extents or nbytes < 1:
            raise BadArgument(f"slot {slot}: cannot take {nbytes} bytes")
        fitting = [gap for gap in self._gaps if gap.nbytes >= nbytes]
        if not fitting:
            return False
        best = min(fitting, key=lambda gap: gap.nbytes)
        place = self._gaps.index(best)
        rest = Extent(best.offset + nbytes, best.nbytes - nbytes)
        self._gaps[place : place + 1] = [rest] if rest.nbytes else []
        self._extents[slot] = Extent(best.offset, nbytes)
        return True

    def release(self, slot: int) -> None:
        """Its bytes are free; of a slot without an extent none are."""
        extent = self._extents.pop(slot, None)
        if extent is None:
            return
        insort(self._gaps, extent)
        place = self._gaps.index(extent)
        around = self._gaps[max(0, place - 1) : place + 2]
        self._gaps[max(0, place - 1) : place + 2] = _joined(around)

    def closing_moves(self) -> list[Move]:
        """What leaves one gap, at the end: carried out in this order, no move overwrites what a
        later one reads. Extents keep their order, so each goes down or stays."""
        moves, end = [], 0
        for slot, extent in sorted(self._extents.items(), key=lambda item: item[1]):
            if extent.offset != end:
                moves.append(Move(slot, extent.offset, end, extent.nbytes))
            end += extent.nbytes
        return moves

    def close(self, moves: Sequence[Move]) -> None:
        """Book all that `closing_moves` told."""
        for move in moves:
            self._extents[move.slot] = Extent(move.target, move.nbytes)
        used = self.nbytes - self.free
        self._gaps = [Extent(used, self.nbytes - used)] if used < self.nbytes else []


def _joined(gaps: Sequence[Extent]) -> list[Extent]:
    """Gaps that lie side by side are one."""
    found: list[Extent] = []
    for gap in gaps:
        if found and found[-1].end == gap.offset:
            gap = Extent(found[-1].offset, found.pop().nbytes + gap.nbytes)
        found.append(gap)
    return found
