"""Clients that leave before their answer is complete.

Owns: the tasks that watch connections. Does not know what is done for a client.
"""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect


class Disconnects:
    """The connections of one application that are being watched."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive

    def watch(self, request: Request, left: Callable[[ClientDisconnect], None]) -> None:
        """Call `left` when the client closes its connection, or when its answer is complete.

        The server tells both in one way; whoever has answered need not listen any longer.
        """
        task = asyncio.create_task(_watch(request, left))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _watch(request: Request, left: Callable[[ClientDisconnect], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left(ClientDisconnect())
