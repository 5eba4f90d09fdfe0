"""Server-sent events: how a streamed answer is written.

Owns: the wire form and the response classes. Does not know what is streamed.
"""

import json
from collections.abc import AsyncGenerator, Callable, Generator
from json.encoder import encode_basestring
from typing import Any, Protocol

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tsugiki.api.record import direct

DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_MARK = "\0"  # in no answer's envelope, and never escaped as another text is
Write = Callable[[bytes], bool]  # False: the reader is slow, write no more for now
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Pieces(Protocol):
    """A streamed answer, piece by piece."""

    async def next(self) -> tuple[bytes, bool]:
        """What to write now, and whether more follows.

        Raises:
            ClientDisconnect: nobody reads it any longer.
        """

    async def push(self, write: Write) -> None:
        """Give what comes to `write` as it comes; return when `next` is to be asked again: at the
        latest for the end, or when `write` says that it is behind."""

    def close(self) -> None:
        """No more pieces are wanted, whether or not there are any."""


def data(payload: dict[str, Any]) -> bytes:
    """One event."""
    return f"data: {_to_json(payload)}\n\n".encode()


class TextEvents:
    """What most events are: text in the middle of an answer. Those of one sequence differ in the
    text only, and are serialised once but for that."""

    def __init__(self, payload: Callable[[int, str], dict[str, Any]]) -> None:
        """`payload(index, text)` is the event of a sequence's text, the last string in it to
        vary."""
        self._payload = payload
        self._around: dict[int, tuple[str, str]] = {}

    def __call__(self, index: int, text: str) -> bytes:
        """The event of this text."""
        if index not in self._around:
            self._around[index] = self._serialised(index)
        before, after = self._around[index]
        return (before + encode_basestring(text) + after).encode()

    def _serialised(self, index: int) -> tuple[str, str]:
        whole, mark = data(self._payload(index, _MARK)).decode(), encode_basestring(_MARK)
        before, _, after = whole.rpartition(mark)
        return before, after


class EventStream(StreamingResponse):
    """A streamed answer whose source is closed as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        super().__init__(source, headers=_HEADERS)
        self._source = source

    async def stream_response(self, send: Send) -> None:
        """Send all events; whatever ends it, the engine hears of it."""
        try:
            await super().stream_response(send)
        finally:
            await self._source.aclose()


class PiecewiseStream(Response):
    """A streamed answer written as it comes, with nothing between the source and the server.

    Starlette's own needs a task group and two tasks for each answer, and a generator's turn for
    each piece. The source itself notices a client that leaves, and raises ClientDisconnect.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write all pieces, each with one `send`, which waits while the client reads slowly."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        try:
            await send({"type": "http.response.start", **start})
            await self._write(direct(scope, send))
        except ClientDisconnect:
            return
        finally:
            self._pieces.close()

    async def _write(self, send: Send) -> None:
        writer, more = PieceWriter(send), True
        while more:
            body, more = await self._pieces.next()
            if body or not more:
                await send(_piece(body, more))
            if more:
                await self._pieces.push(writer.write)
                await writer.caught_up()


class PieceWriter:
    """Writes pieces without a turn of the event loop for each.

    A server takes a piece at once unless its client reads slowly, so the one who has news may call
    `send` itself: the task of the answer need not be woken, nor the frames that it waits in.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun: _Begun | None = None

    def write(self, body: bytes) -> bool:
        """Send a piece; False when that has to wait: call nothing but `caught_up` then."""
        if not body:
            return True
        sending = self._send(_piece(body, True)).__await__()
        try:
            self._begun = _Begun(next(sending), sending)
        except StopIteration:
            return True
        return False

    async def caught_up(self) -> None:
        """Wait until everything was sent."""
        begun, self._begun = self._begun, None
        if begun is not None:
            await begun


class _Begun:
    """The rest of something awaitable that has run as far as to its first wait."""

    def __init__(self, wait: Any, rest: Generator[Any, Any, None]) -> None:
        self._wait = wait  # the future that the task has to wait for
        self._rest = rest

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._wait
        yield from self._rest


def _piece(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
