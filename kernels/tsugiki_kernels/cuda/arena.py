"""The memory of variants on a GPU: one buffer with a table of slots, closed up between two steps.

Owns: who lies where in the buffer, and the copies when somebody moves. Does not know what is in a
region, nor when a step ends.

What finds no gap that is long enough gets memory of its own beside the buffer: a load never waits,
and the bytes beside are those of loads that residency has not made room for. `arrange` brings them
in as soon as there is room, moving the others together when only their sum is long enough.

No step sees a region move: copies are asked of the stream of steps, by the thread that asks for
steps. What a step reads follows: records are rewritten and tensors pointed elsewhere here, work
lists are filled before each run (table.py), and what rebuilds a weight watches its region
(deltas.py).
"""

import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.cuda.pinned_ring import PinnedRing
from tsugiki_kernels.cuda.region import Region, Shift, Shifts
from tsugiki_kernels.cuda.slot_table import Move, SlotTable
from tsugiki_kernels.device import Device
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import ALIGNMENT
from tsugiki_kernels.variant_room import RoomStats

BOUNCE = 8 * 2**20  # bytes; what moves by less goes through memory of this size


class Arena:
    """Regions of device memory. `take` may be called by any thread, `arrange` by the engine's."""

    def __init__(self, device: Device, ring: PinnedRing, bounce: int = BOUNCE) -> None:
        self._device = device
        self._ring = ring
        self._most_bounce = bounce
        self.still = threading.RLock()  # held while addresses are written down: nothing moves
        self._buffer = self._bounce = torch.empty(0, dtype=torch.uint8)
        self._table = SlotTable(0)
        self._regions: weakref.WeakValueDictionary[int, Region] = weakref.WeakValueDictionary()
        self._beside: dict[int, int] = {}  # slot -> bytes, the first that came first
        self._gone: deque[int] = deque()  # slots of regions that nobody has any more
        self._last_slot = 0
        self._reserved = False
        self._moves = self._moved_bytes = 0

    def reserve(self, nbytes: int) -> None:
        """Take the buffer, once. What has memory by now, the base's own parts, stays where it is.

        Raises:
            BadArgument: there is a buffer already.
        """
        with self.still:
            if self._reserved:
                raise BadArgument("the memory of variants is reserved once")
            self._reserved = True
            self._beside.clear()
            size = nbytes // ALIGNMENT * ALIGNMENT
            self._buffer = self._device.empty(size)
            self._bounce = self._device.empty(min(self._most_bounce, size))
            self._table = SlotTable(size)

    def take(self, nbytes: int) -> Region:
        """A region of so many bytes, rounded up. Steps may still read what was there.

        Whoever writes it waits for those: on the stream of steps, or after an event of it.
        """
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        with self.still:
            self._collect()
            self._last_slot = slot = self._last_slot + 1
            if self._table.take(slot, size):
                region = Region(self._device, self._address(slot), size, self._buffer)
            else:
                memory = self._device.empty(size)
                region = Region(self._device, memory.data_ptr(), size, memory)
                self._beside[slot] = size
            self._regions[slot] = region
            weakref.finalize(region, self._gone.append, slot).atexit = False
        return region

    def arrange(self) -> None:
        """Between two steps, on their thread: bring in what lies beside and now has room.

        Does nothing while a variant is being written; the next call will.
        """
        if not self._beside or not self.still.acquire(blocking=False):
            return
        try:
            self._collect()
            for slot in list(self._beside):
                self._bring_in(slot)
        finally:
            self.still.release()

    def stats(self) -> RoomStats:
        """Any thread may ask: every number is read by itself."""
        return RoomStats(
            nbytes=self._table.nbytes,
            free_bytes=self._table.free,
            largest_free_bytes=self._table.largest_gap,
            beside_bytes=sum(list(self._beside.values())),
            moves=self._moves,
            moved_bytes=self._moved_bytes,
        )

    def _collect(self) -> None:
        while self._gone:
            slot = self._gone.popleft()
            self._table.release(slot)
            self._beside.pop(slot, None)

    def _bring_in(self, slot: int) -> None:
        region, nbytes = self._regions.get(slot), self._beside[slot]
        if region is None or self._table.free < nbytes:
            return
        shifts: list[Shift] = []
        if not self._table.take(slot, nbytes):
            shifts = self._close_up()
            self._table.take(slot, nbytes)
        del self._beside[slot]
        begin = self._table.offset(slot)
        self._device.steps.copy(self._buffer[begin : begin + nbytes], region.memory())
        shifts.append(self._moved(region, begin))
        self._redirect(Shifts(shifts))

    def _close_up(self) -> list[Shift]:
        moves = self._table.closing_moves()
        self._table.close(moves)
        for source, target, nbytes in _runs(moves):
            self._copy_down(source, target, nbytes)
        found = [(self._regions.get(move.slot), move.target) for move in moves]
        return [self._moved(region, target) for region, target in found if region is not None]

    def _copy_down(self, source: int, target: int, nbytes: int) -> None:
        """Within the buffer, the beginning first; no single copy overlaps itself."""
        buffer, copy = self._buffer, self._device.steps.copy
        direct = source - target >= len(self._bounce)
        at_once = source - target if direct else len(self._bounce)
        for done in range(0, nbytes, at_once):
            count = min(at_once, nbytes - done)
            piece = buffer[source + done : source + done + count]
            if not direct:
                copy(self._bounce[:count], piece)
                piece = self._bounce[:count]
            copy(buffer[target + done : target + done + count], piece)

    def _moved(self, region: Region, offset: int) -> Shift:
        self._moves += 1
        self._moved_bytes += region.nbytes
        return region.move(self._buffer.data_ptr() + offset, self._buffer)

    def _redirect(self, shifts: Shifts) -> None:
        """Rewrite the records that name what moved; their copies come after those of the bytes."""
        found = [(region, region.redirect(shifts)) for region in list(self._regions.values())]
        heads = [(region, head) for region, head in found if head is not None]
        if heads:
            self._ring.scatter([(_head_of(region, head), head) for region, head in heads])

    def _address(self, slot: int) -> int:
        return self._buffer.data_ptr() + self._table.offset(slot)


def _head_of(region: Region, head: Tensor) -> Tensor:
    return region.memory()[: head.nbytes].view(torch.int64)


def _runs(moves: Sequence[Move]) -> list[tuple[int, int, int]]:
    """(source, target, bytes) of moves; neighbours that go equally far go together."""
    runs: list[tuple[int, int, int]] = []
    for _, source, target, nbytes in moves:
        if runs and runs[-1][0] + runs[-1][2] == source and runs[-1][1] + runs[-1][2] == target:
            source, target, nbytes = runs[-1][0], runs[-1][1], runs.pop()[2] + nbytes
        runs.append((source, target, nbytes))
    return runs
