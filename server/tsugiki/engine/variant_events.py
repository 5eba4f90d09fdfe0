"""What happened to variants, numbered, for those who watch.

Owns: one bounded ring of events. Readers keep a position in it and nothing is queued for them, so
that a slow one costs no memory: when the ring has passed it, it is cut off. Lives on the event
loop, but for `transition`, which the engine thread calls. Does not know what the events mean.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable

from tsugiki.engine.variant_info import VariantEvent, VariantEventKind
from tsugiki.variants.residency import EVICTED

RING = 4096
_KIND_OF_STATE: dict[str, VariantEventKind] = {
    "loading": "loading",
    "host": "host",
    "ready": "ready",
    "failed": "failed",
    "disk": "unloaded",
}
NamesOf = Callable[[str], Iterable[str]]  # digest -> the names that have it


class VariantEvents:
    """The last `size` events.

    Sequence numbers begin at the clock's milliseconds: those of an earlier run of the server are
    always smaller, so that a client which comes back with one is given all that is remembered.
    """

    def __init__(
        self, names_of: NamesOf, *, size: int = RING, clock: Callable[[], float] = time.time
    ) -> None:
        self._names_of = names_of
        self._clock = clock
        self._ring: deque[VariantEvent] = deque(maxlen=size)
        self._last = int(clock() * 1000)
        self._closed = False
        self._readers: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """From here on `transition` reaches the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End every reader."""
        self._closed = True
        self._wake()

    def publish(
        self, name: str, digest: str, kind: VariantEventKind, detail: str | None = None
    ) -> None:
        """Something happened."""
        self._last += 1
        self._ring.append(VariantEvent(self._last, self._clock(), name, digest, kind, detail))
        self._wake()

    def transition(self, digest: str, old: str, new: str, reason: str | None) -> None:
        """A version went from one residency state to another. Any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._publish_transition, digest, old, new, reason)

    async def after(self, sequence: int | None) -> AsyncGenerator[VariantEvent, None]:
        """See EngineClient.events. `sequence` None: from now on."""
        position = self._last if sequence is None else self._resumed(sequence)
        while not self._closed:
            fresh = self._since(position)
            if fresh is None:
                return  # the ring has passed this reader
            if not fresh:
                await self._changed()
            for event in fresh:
                yield event
                position = event.sequence

    def _resumed(self, sequence: int) -> int:
        """Where to go on after `sequence`: at the oldest event when it is forgotten or not ours."""
        oldest = self._ring[0].sequence - 1 if self._ring else self._last
        return sequence if oldest <= sequence <= self._last else oldest

    def _since(self, position: int) -> list[VariantEvent] | None:
        """The events after a position; None when some of them are forgotten."""
        if position == self._last:
            return []
        if not self._ring or position < self._ring[0].sequence - 1:
            return None
        missed = self._last - position
        return [self._ring[-i] for i in range(missed, 0, -1)]

    async def _changed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._readers.add(future)
        try:
            await future
        finally:
            self._readers.discard(future)

    def _wake(self) -> None:
        for future in self._readers:
            if not future.done():
                future.set_result(None)

    def _publish_transition(self, digest: str, old: str, new: str, reason: str | None) -> None:
        kind = "evicted" if reason == EVICTED else _KIND_OF_STATE[new]
        detail = f"to {new}" if reason == EVICTED else reason
        for name in self._names_of(digest):
            self.publish(name, digest, kind, detail)
