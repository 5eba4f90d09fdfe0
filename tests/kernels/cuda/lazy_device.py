"""A device that does nothing before it must: what a GPU may do late, it does as late as it can.

Work on its streams waits in queues until somebody waits for an event, so a missing event shows as
wrong values: a copy that was not waited for has not happened, a buffer that was filled anew too
early arrives with its new content, memory that was reused too early is read with its new content.
During a capture it refuses what would end one on a GPU.
"""

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tsugiki_kernels.cuda.launcher import Argument, Launcher
from tsugiki_kernels.device import Event, Replay, host_view

POISON = 0xFF


# torch's operations that take memory, copy, or wait for a value
REFUSED = ("empty", "zeros", "full", "clone", "cat", "copy_", "_to_copy", "_local_scalar_dense")


class BrokenRule(AssertionError):
    """What the device does not allow."""


class RefusedOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Torch's share of what a capture must not contain."""

    def __init__(self, device: "LazyDevice") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(REFUSED):
            self._device.refuse_in_capture(name)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class LazyEvent:
    """All that a stream was asked before it."""

    stream: "LazyStream"
    position: int

    def synchronize(self) -> None:
        self.stream.device.refuse_in_capture("waiting for an event")
        self.stream.run(self.position)


@dataclass
class LazyStream:
    """Work in order, done up to some point."""

    device: "LazyDevice"
    work: list[Callable[[], None]] = field(default_factory=list)
    done: int = 0

    def ask(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def record(self) -> Event:
        self.device.refuse_in_capture("recording an event")
        return LazyEvent(self, len(self.work))

    def wait(self, event: Event) -> None:
        assert isinstance(event, LazyEvent)
        self.ask(lambda: event.stream.run(event.position))

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.device.refuse_in_capture("copying")
        if not (self.device.is_pinned(source) or self.device.holds(source)):
            raise BrokenRule("copying from memory that is not pinned")
        to, come_from, nbytes = target.data_ptr(), source.data_ptr(), source.nbytes
        assert nbytes == target.nbytes
        if abs(to - come_from) < nbytes:
            raise BrokenRule(f"copying {nbytes} bytes onto themselves, {to - come_from} further")
        self.ask(lambda: _copy(to, come_from, nbytes))

    def run(self, position: int | None = None) -> None:
        """Do what was asked, up to a position."""
        end = len(self.work) if position is None else position
        while self.done < end:
            self.done += 1
            self.work[self.done - 1]()
            self.work[self.done - 1] = _over


def _over() -> None:
    """In place of work that is done, so that it keeps nothing alive."""


def _copy(target: int, source: int, nbytes: int) -> None:
    """By address, as on a GPU: tensors may be pointed elsewhere meanwhile."""
    ctypes.memmove(target, source, nbytes)


class LazyDevice:
    """See tsugiki_kernels.device.Device; its memory is the host's."""

    def __init__(self) -> None:
        self.place = torch.device("cpu")
        self.steps = LazyStream(self)
        self.copies = LazyStream(self)
        self.capturing: list[Callable[[], None]] | None = None
        self.captures = 0
        self._pinned: list[Tensor] = []
        self._given: list[Tensor] = []  # never freed: work that is not done yet may read it

    @torch.inference_mode(False)
    def empty(self, nbytes: int) -> Tensor:
        self.refuse_in_capture("allocating")
        memory = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self._given.append(memory)
        return memory

    def view(self, address: int, nbytes: int, owner: object) -> Tensor:
        return host_view(address, nbytes, owner)

    def beside(self) -> AbstractContextManager[object]:
        return nullcontext()

    @torch.inference_mode(False)
    def pinned(self, nbytes: int) -> Tensor:
        self.refuse_in_capture("allocating")
        memory = torch.empty(nbytes, dtype=torch.uint8)
        self._pinned.append(memory)
        return memory

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it lies in memory that `pinned` gave."""
        return _within(tensor, self._pinned)

    def holds(self, tensor: Tensor) -> bool:
        """Whether it lies in memory that `empty` gave."""
        return _within(tensor, self._given)

    def capture(self, body: Callable[[], None]) -> Replay:
        self.captures += 1
        graph = self.capturing = []
        try:
            with RefusedOperations(self):
                body()
        finally:
            self.capturing = None
        return lambda: self.steps.work.extend(graph)

    def refuse_in_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise BrokenRule(f"{what} while a graph is captured")


def _within(tensor: Tensor, memories: Sequence[Tensor]) -> bool:
    begin = tensor.data_ptr()
    return any(
        m.data_ptr() <= begin and begin + tensor.nbytes <= m.data_ptr() + len(m) for m in memories
    )


class LazyLauncher:
    """Launches of another launcher, on the `steps` of a lazy device."""

    def __init__(self, launcher: Launcher, device: LazyDevice) -> None:
        self._launcher = launcher
        self._device = device
        self._warm: set[str] = set()
        self.device = launcher.device
        self.multiprocessors = launcher.multiprocessors
        self.capability = launcher.capability

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        graph = self._device.capturing
        if graph is not None and name not in self._warm:
            raise BrokenRule(f"{name} runs for the first time while a graph is captured")
        self._warm.add(name)
        work = self._device.steps.work if graph is None else graph
        # the addresses of now: tensors may be pointed elsewhere before their launch runs
        own = [a.detach() if isinstance(a, Tensor) else a for a in args]
        work.append(lambda: self._launcher.launch(name, grid, block, own, shared_bytes))
