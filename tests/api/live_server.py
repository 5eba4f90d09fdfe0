"""uvicorn in a thread on a free port."""

import asyncio
import socket
import threading
from typing import Any

import uvicorn


class LiveServer(uvicorn.Server):
    """Knows its URL and says when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listening = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.run(self.serve(sockets=[self._listener]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._listening.set()

    def wait_until_started(self) -> None:
        if not self._listening.wait(timeout=30):
            raise RuntimeError("the test server did not start")
