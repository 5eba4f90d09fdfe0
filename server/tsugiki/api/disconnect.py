"""A client that leaves before its answer is complete.

Owns: watching the connection. Does not know what is done for the client.
"""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.requests import ClientDisconnect

_watching: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive


def watch(request: Request, left: Callable[[ClientDisconnect], None]) -> None:
    """Call `left` when the client closes its connection, or when its answer is complete.

    The server tells both in one way; whoever has answered need not listen any longer.
    """
    task = asyncio.create_task(_watch(request, left))
    _watching.add(task)
    task.add_done_callback(_watching.discard)


async def _watch(request: Request, left: Callable[[ClientDisconnect], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left(ClientDisconnect())
