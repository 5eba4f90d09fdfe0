"""Watching the variants directory while the server runs.

Owns: when to look, and freeing what vanished. Whatever goes wrong is said and tried again: only
`stop` ends the watch. Lives on the event loop. Does not know files (variants.registry).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from tsugiki.engine.variant_service import VariantService

logger = logging.getLogger(__name__)

Wait = Callable[[float], Awaitable[None]]


class VariantWatch:
    """Looks every `seconds`; never when that is 0."""

    def __init__(
        self, service: VariantService, seconds: float, *, wait: Wait = asyncio.sleep
    ) -> None:
        self._service = service
        self._seconds = seconds
        self._wait = wait
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = asyncio.Lock()  # a second look begins when the first has ended
        self._complaint = ""  # the last one, which is not repeated every two seconds

    def start(self) -> None:
        """Begin to look; at once where the start has left something to do."""
        if self._service.registry.postponed:
            self._background(self.look())
        if self._seconds:
            self._background(self._run())

    async def stop(self) -> None:
        """Look no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Once: what the operator did becomes visible; what vanished goes when it is idle."""
        try:
            async with self._looking:
                vanished = await self._service.rescan()
            self._complaint = ""
        except Exception as error:  # a disk that is away may come back
            complaint = f"{type(error).__name__}: {error}"
            if complaint != self._complaint:
                logger.exception("the variants directory cannot be watched; trying on")
            self._complaint = complaint
            return
        if vanished:
            self._background(self._free(vanished))

    async def _run(self) -> None:
        while True:
            await self._wait(self._seconds)
            await self.look()

    async def _free(self, digests: set[str]) -> None:
        try:
            freed = await self._service.free(digests)
        except Exception:  # they stay in memory until the LRU takes them
            logger.exception("%d vanished variants were not freed", len(digests))
        else:
            logger.info("%d variants vanished from the directory: %d bytes", len(digests), freed)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
