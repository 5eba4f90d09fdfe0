"""GET /v1/variants/events: what happens to variants, as server-sent events.

Owns: the route, its keep-alives, and the end of a connection that does not read. Does not know what
an event means.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.types import Message, Send

from tsugiki.api import sse
from tsugiki.api.auth import Access, AccessDep
from tsugiki.api.responses import documented_errors
from tsugiki.api.services import ServicesDep
from tsugiki.engine.variant_info import VariantEvent

router = APIRouter(tags=["variants"])

KEEP_ALIVE_SECONDS = 15.0
STALLED_SECONDS = 60.0  # a write that takes longer than this ends the connection
_SSE: dict[int | str, dict[str, object]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "`id:` is the sequence number, `event:` the kind, `data:` the event as JSON",
    }
}


@router.get(
    "/v1/variants/events",
    response_class=Response,
    responses={**_SSE, **documented_errors()},
)
async def variant_events(
    services: ServicesDep,
    access: AccessDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{0,18}$")] = None,
) -> Response:
    """Changes of the variants that the caller may see, from now on; after `Last-Event-ID` as far as
    they are remembered. One that falls behind what is remembered is cut off and may come back."""
    after = int(last_event_id) if last_event_id else None
    return WatchedStream(_written(services.engine.events(after), access))


async def _written(
    events: AsyncGenerator[VariantEvent, None], access: Access
) -> AsyncGenerator[str, None]:
    """The events in their wire form; a comment when there are none for a while."""
    yield ": tsugiki\n\n"
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS)
            if not upcoming.done():
                yield ": keep-alive\n\n"
                continue
            if (event := upcoming.result()) is None:
                return
            if access.sees(event.name):
                yield _wire(event)
            upcoming = asyncio.ensure_future(anext(events, None))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
        await events.aclose()


def _wire(event: VariantEvent) -> str:
    payload = json.dumps(asdict(event), ensure_ascii=False, separators=(",", ":"))
    return f"id: {event.sequence}\nevent: {event.kind}\ndata: {payload}\n\n"


class WatchedStream(sse.EventStream):
    """An event stream that ends when its client does not take what is written."""

    async def stream_response(self, send: Send) -> None:
        """Send; a stalled connection is left unfinished, which makes the server close it."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALLED_SECONDS):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(send_in_time)
