"""Server-sent events: how a streamed answer is written.

Owns: the wire form and the response class. Does not know what is streamed.
"""

import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

DONE = "data: [DONE]\n\n"


def data(payload: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(payload, ensure_ascii=False, separators=(',', ':'))}\n\n"


def joined(payloads: Iterable[dict[str, Any]]) -> str:
    """The events of one step, for one write."""
    return "".join(map(data, payloads))


class EventStream(StreamingResponse):
    """A streamed answer whose source is closed as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[str, None]) -> None:
        super().__init__(source, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._source = source

    async def stream_response(self, send: Send) -> None:
        """Send all events; whatever ends it, the engine hears of it."""
        try:
            await super().stream_response(send)
        finally:
            await self._source.aclose()
