"""What a client may do to the memory of a running engine.

Owns: loading, unloading and pinning as calls to await; who waits for whom there. Lives on the event
loop and has the engine thread do the work between two steps. Knows digests, not names.
"""

import asyncio
from functools import partial

from tsugiki.engine.core import EngineCore
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.thread import EngineThread
from tsugiki.errors import Conflict
from tsugiki.variants.loader import LoadOutcome


class VariantMemory:
    """Residency from the event loop's side."""

    def __init__(self, thread: EngineThread, open_requests: OpenRequests) -> None:
        self._thread = thread
        self._open_requests = open_requests

    async def load(self, digest: str) -> LoadOutcome:
        """Bring it into memory, an earlier failure forgiven; how that ended.

        Raises:
            Unavailable: the engine is not running.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[LoadOutcome] = loop.create_future()

        def loaded(outcome: LoadOutcome) -> None:
            loop.call_soon_threadsafe(_resolve, result, outcome)

        return await self._thread.answered(result, lambda core: core.load(digest, loaded))

    async def unload(self, digest: str) -> int:
        """Drop it once no request uses it; returns the bytes freed."""
        while True:
            await self._open_requests.none_of(digest)
            try:
                return await self._thread.call(lambda core: core.unload(digest))
            except Conflict:
                continue  # a request came in between: wait for that one too

    async def forget(self, digest: str) -> None:
        """Drop what is known of a deleted version."""
        await self._thread.call(partial(_forget, digest))

    async def pin(self, digest: str, pinned: bool) -> None:
        """Keep it in memory once it is there, or let it go."""
        await self._thread.call(partial(_pin, digest, pinned))

    async def pin_and_load(self, digest: str) -> None:
        """Pin it, and begin to load it."""
        await self.pin(digest, True)
        self._thread.put(lambda core: core.load(digest, lambda outcome: None))


def _forget(digest: str, core: EngineCore) -> None:
    core.variants.forget(digest)


def _pin(digest: str, pinned: bool, core: EngineCore) -> None:
    core.variants.pin(digest, pinned)


def _resolve(result: "asyncio.Future[LoadOutcome]", outcome: LoadOutcome) -> None:
    if not result.done():
        result.set_result(outcome)
