"""How a variant's memory gets onto the device: one pinned buffer, one copy beside the steps.

Owns: the order of copies, steps and the reuse of memory. Does not know what is copied.
"""

from contextlib import AbstractContextManager

from torch import Tensor

from tsugiki_kernels.cuda.arena import Arena
from tsugiki_kernels.cuda.region import Region
from tsugiki_kernels.device import Device


class Uploader:
    """Copies one extent at a time; any thread may call, and waits on its own."""

    def __init__(self, device: Device, arena: Arena) -> None:
        self._device = device
        self._arena = arena
        self._buffer: Tensor | None = None

    def __enter__(self) -> "Uploader":
        """The pinned buffer is this thread's until it leaves, and nothing on the device moves."""
        self._arena.still.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._arena.still.release()

    def buffer(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], pinned; the memory of the call before it."""
        if self._buffer is None or len(self._buffer) < nbytes:
            self._buffer = self._device.pinned(nbytes)
        return self._buffer[:nbytes]

    def beside_steps(self) -> AbstractContextManager[object]:
        """For what is computed on the device on the way there. It finds what the steps that were
        asked for until now have written: masks drawn, or moved, a moment ago."""
        self._device.copies.wait(self._device.steps.record())
        return self._device.beside()

    def target(self, nbytes: int) -> Region:
        """Memory on the device, for `upload`."""
        return self._arena.take(nbytes)

    def upload(self, content: Tensor, target: Tensor) -> None:
        """target = content, done when this returns.

        The target may have been freed by somebody a moment ago: the copy begins after the steps
        that were asked for until now, which may still read it. No step waits for the copy; the
        caller does, off the engine thread, and so may hand out what was copied and fill the buffer
        anew.
        """
        device = self._device
        device.copies.wait(device.steps.record())
        device.copies.copy(target, content)
        device.copies.record().synchronize()
