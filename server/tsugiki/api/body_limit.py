"""Bodies over the limit are refused while they arrive, before anything parses them.

Owns: the two limits (JSON bodies, uploads). Does not know what a body means.
"""

import logging

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsugiki.api.errors import error_response
from tsugiki.errors import PayloadTooLarge

logger = logging.getLogger(__name__)


class BodyLimitMiddleware:
    """413 when Content-Length says too much, or when more arrives than was said."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if scope["method"] == "PUT" else self._max_body_bytes
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdigit() and int(stated) > limit:
            error = PayloadTooLarge(f"a body of {stated} bytes is over the limit of {limit}")
            logger.warning("%s %s refused: %s", scope["method"], scope["path"], error)
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, _counting(receive, limit), send)


def _counting(receive: Receive, limit: int) -> Receive:
    received = 0

    async def receive_within_limit() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            # FastAPI lets only its own exception pass unchanged out of body parsing.
            raise HTTPException(413, f"the body is over the limit of {limit} bytes")
        return message

    return receive_within_limit
