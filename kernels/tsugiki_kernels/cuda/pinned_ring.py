"""Pinned host memory in turns, for what each step brings to the device before it runs.

Owns: when a slot may be written again. Does not know what is copied. For the engine's thread alone;
variants, which come beside the steps, have upload.py.
"""

from collections.abc import Sequence

from torch import Tensor

from tsugiki_kernels.device import Device, Event

SLOTS = 8  # of two steps, each with up to four tables


class PinnedRing:
    """Slots that copies to the device are made from, one after the other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: list[Tensor | None] = [None] * SLOTS
        self._copied: list[Event | None] = [None] * SLOTS
        self._slot = 0

    def buffer(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], pinned, for `copy`; waits until the copy made from it before is done."""
        copied, memory = self._copied[self._slot], self._memory[self._slot]
        if copied is not None:
            copied.synchronize()
        if memory is None or len(memory) < nbytes:
            memory = self._memory[self._slot] = self._device.pinned(nbytes)
        return memory[:nbytes]

    def copy(self, target: Tensor, content: Tensor) -> None:
        """target = content, the last `buffer`: after the steps asked for, before the next."""
        self._device.steps.copy(target, content)
        self._copied_all()

    def scatter(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Each (target, content in host memory) at once, from one slot."""
        room = self.buffer(sum(content.nbytes for _, content in parts))
        begin = 0
        for target, content in parts:
            piece = room[begin : begin + content.nbytes].view(content.dtype).view(content.shape)
            piece.copy_(content)
            self._device.steps.copy(target, piece)
            begin += content.nbytes
        self._copied_all()

    def _copied_all(self) -> None:
        """The slot is in use until here; the next one follows."""
        self._copied[self._slot] = self._device.steps.record()
        self._slot = (self._slot + 1) % SLOTS
