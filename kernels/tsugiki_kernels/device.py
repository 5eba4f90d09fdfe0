"""Where a backend computes: streams, events, pinned memory and graphs behind one small interface.

Owns: the `Device` protocol and its two implementations. Work on a stream is done in order and later
than it is asked for; an event stands for all that a stream was asked so far. On a CPU everything is
done at once, so that order holds by itself. Knows neither kernels nor what the memory holds.

The rules that whoever uses a device keeps (a recording fake checks them, tests/kernels):
- what a copy wrote is read only after its event;
- memory is written again only after the event of the last work that may read it;
- while a graph is captured nothing is allocated, nobody waits, and no kernel runs the first time.

Steps run in torch's inference mode, and what lies between them does not: memory is the same from
both, and a copy may write what either made a view of.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Replay = Callable[[], None]


class Event(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Wait, on the calling thread, until the work up to it is done. Releases the GIL."""


class Stream(Protocol):
    """A queue of work on a device."""

    def record(self) -> Event:
        """The point after all that was asked so far."""

    def wait(self, event: Event) -> None:
        """Work asked from now on begins after the event; the calling thread does not wait."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target = source, equally many bytes; the source is pinned, or on the device."""


class Device(Protocol):
    """One device."""

    @property
    def place(self) -> torch.device:
        """Where its tensors are."""

    @property
    def steps(self) -> Stream:
        """The stream of operations: torch's default one."""

    @property
    def copies(self) -> Stream:
        """A stream beside it, for what arrives while steps run."""

    def empty(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] on the device, aligned to 64. Steps may still read what was there."""

    def view(self, address: int, nbytes: int, owner: object) -> Tensor:
        """uint8 [nbytes] over memory of the device that is somebody's; it keeps `owner` alive."""

    def pinned(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] in host memory that `copies` reads without the processor's help."""

    def beside(self) -> AbstractContextManager[object]:
        """What torch computes inside goes to `copies`: what reads the work of steps waits first."""

    def capture(self, body: Callable[[], None]) -> Replay:
        """All that `body` asks of this device, in order, as one call. `body` computes nothing."""


class _Done:
    """The event of a device that does everything at once."""

    def synchronize(self) -> None:
        """It is over already."""


class _AtOnce:
    """The stream of such a device."""

    def record(self) -> Event:
        """See Stream.record."""
        return _Done()

    def wait(self, event: Event) -> None:
        """See Stream.wait."""

    @torch.inference_mode()
    def copy(self, target: Tensor, source: Tensor) -> None:
        """See Stream.copy."""
        target.copy_(source)


class _Bytes:
    """Memory as numpy and torch adopt it without a copy; what they make of it keeps `owner`."""

    def __init__(self, address: int, nbytes: int, owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = self.__cuda_array_interface__ = {
            "data": (address, False),  # not read-only
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def host_view(address: int, nbytes: int, owner: object) -> Tensor:
    """See Device.view, of a device whose memory is the host's."""
    return torch.from_numpy(np.asarray(_Bytes(address, nbytes, owner)))


class CpuDevice:
    """The processor: its memory is the host's, and a captured body is run again."""

    def __init__(self) -> None:
        self.place = torch.device("cpu")
        self.steps: Stream = _AtOnce()
        self.copies: Stream = _AtOnce()

    @torch.inference_mode(False)
    def empty(self, nbytes: int) -> Tensor:
        """See Device.empty."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def view(self, address: int, nbytes: int, owner: object) -> Tensor:
        """See Device.view."""
        return host_view(address, nbytes, owner)

    @torch.inference_mode(False)
    def pinned(self, nbytes: int) -> Tensor:
        """See Device.pinned."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def beside(self) -> AbstractContextManager[object]:
        """See Device.beside."""
        return nullcontext()

    def capture(self, body: Callable[[], None]) -> Replay:
        """See Device.capture."""
        return body


class _CudaStream:
    """A stream of torch's."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def record(self) -> Event:
        """See Stream.record."""
        event: torch.cuda.Event = self.stream.record_event()
        return event

    def wait(self, event: Event) -> None:
        """See Stream.wait."""
        if not isinstance(event, torch.cuda.Event):
            raise TypeError(f"an event of another device: {type(event).__name__}")
        self.stream.wait_event(event)

    @torch.inference_mode()
    def copy(self, target: Tensor, source: Tensor) -> None:
        """See Stream.copy."""
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)


class CudaDevice:
    """An NVIDIA GPU through torch."""

    def __init__(self, place: torch.device) -> None:
        self.place = torch.device("cuda", place.index or 0)
        self.steps: Stream = _CudaStream(torch.cuda.default_stream(self.place))
        self._beside = _new_stream(self.place)
        self.copies: Stream = _CudaStream(self._beside)
        self._capturing = _new_stream(self.place)
        self._first: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode(False)
    def empty(self, nbytes: int) -> Tensor:
        """See Device.empty."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.place)

    def view(self, address: int, nbytes: int, owner: object) -> Tensor:
        """See Device.view."""
        return torch.as_tensor(_Bytes(address, nbytes, owner), device=self.place)

    @torch.inference_mode(False)
    def pinned(self, nbytes: int) -> Tensor:
        """See Device.pinned."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def beside(self) -> AbstractContextManager[object]:
        """See Device.beside."""
        return torch.cuda.stream(self._beside)

    def capture(self, body: Callable[[], None]) -> Replay:
        """See Device.capture. Other threads may copy and wait meanwhile.

        Graphs are replayed one after the other and keep nothing in their pool: they share that of
        the first. Torch gives a pool up with its last graph, so that one stays.
        """
        graph = torch.cuda.CUDAGraph()
        pool = None if self._first is None else self._first.pool()
        with torch.cuda.device(self.place):
            self._capturing.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._capturing):
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    body()
                finally:
                    graph.capture_end()
        self._first = self._first or graph
        return graph.replay


def _new_stream(place: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(place)  # type: ignore[no-untyped-call]
