"""What is known of one HTTP request when it ends: for its headers, its log line and the metrics.

Owns: `RequestRecord` and the middleware that opens it, answers when everything else failed, and
writes one JSON line. Does not know routes.
"""

import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsugiki.api.errors import CLIENT_CLOSED_REQUEST, error_response, internal_error
from tsugiki.api.sequences import Step
from tsugiki.engine.request import VariantRef

access_log = logging.getLogger("tsugiki.access")

_STATE = "tsugiki.record"
_DIRECT = "tsugiki.direct"
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class RequestRecord:
    """Filled in while a request is answered. Times are seconds of the monotonic clock."""

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.monotonic)
    status: int = CLIENT_CLOSED_REQUEST  # until an answer starts
    tenant: str = ""
    variant: VariantRef | None = None  # the base with its fingerprint as digest
    prompt_tokens: int = 0
    completion_tokens: int = 0
    variant_load_ms: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    error: str | None = None  # code of an error that came after the answer had started
    first_token: float | None = None
    cached_tokens: dict[int, int] = field(default_factory=dict)  # by sequence, of its prompt
    token_gaps: list[float] = field(default_factory=list)  # seconds per token, one entry a step

    def take(self, step: Step) -> None:
        """Count what one step of the engine brought."""
        for index, event in step:
            self.completion_tokens += len(event.token_ids)
            self.token_gaps += event.gaps
            if self.first_token is None:
                self.first_token = event.first_token
            if event.finish_reason is not None:
                self.finish_reasons.append(str(event.finish_reason))
                self.cached_tokens[index] = event.cached_tokens
            if event.variant_load_ms is not None:
                self.variant_load_ms = max(event.variant_load_ms, self.variant_load_ms or 0.0)

    def line(self, ended: float) -> str:
        """The log line: JSON, no prompt and no answer in it."""
        values = {
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "ms": round(1000 * (ended - self.started), 1),
            "tenant": self.tenant or None,
            "variant": self.variant and self.variant.name,
            "digest": self.variant and self.variant.digest,
            "prompt_tokens": self.prompt_tokens or None,
            "cached_tokens": sum(self.cached_tokens.values()) or None,
            "completion_tokens": self.completion_tokens or None,
            "ttft_ms": self.first_token and round(1000 * (self.first_token - self.started), 1),
            "variant_load_ms": self.variant_load_ms,
            "finish_reason": ",".join(self.finish_reasons) or None,
            "error": self.error,
        }
        return json.dumps({name: value for name, value in values.items() if value is not None})


class RecordSink(Protocol):
    """Whoever wants to know of ended requests (the metrics)."""

    def observe(self, record: RequestRecord, ended: float) -> None:
        """Called once per request, after its last byte."""


def record_of(request: Request) -> RequestRecord:
    """The record of the request being answered."""
    record: RequestRecord = request.scope[_STATE]
    return record


def direct(scope: Scope, send: Send) -> Send:
    """`send` as our outermost layer got it. The layers below look at the start of an answer alone;
    a streamed answer would pay for all of them with each of its tokens."""
    found: Send = scope.get(_DIRECT, send)
    return found


class RecordMiddleware:
    """Outermost: request id, identity headers, the log line, and a 500 for what nobody caught."""

    def __init__(self, app: ASGIApp, sink: RecordSink) -> None:
        self._app = app
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _open_record(scope)
        scope[_STATE] = record
        scope[_DIRECT] = send
        started = False

        async def send_with_identity(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                record.status = message["status"]
                _add_identity(message, record)
            await send(message)

        try:
            await self._app(scope, receive, send_with_identity)
        except Exception as error:
            if started:
                raise
            await error_response(internal_error(error))(scope, receive, send_with_identity)
        finally:
            ended = time.monotonic()
            access_log.info(record.line(ended))
            self._sink.observe(record, ended)


def _open_record(scope: Scope) -> RequestRecord:
    given = Headers(scope=scope).get("x-request-id", "")
    request_id = given if _ACCEPTABLE_ID.fullmatch(given) else uuid.uuid4().hex
    return RequestRecord(request_id, scope["method"], scope["path"])


def _add_identity(message: Message, record: RequestRecord) -> None:
    headers = MutableHeaders(scope=message)
    headers["x-request-id"] = record.id
    if record.variant is not None:
        name, digest = record.variant.name, record.variant.digest
        label = quote(name, safe="/")  # a base's id may be any directory's name
        headers["x-tsugiki-variant"] = f"{label}@{digest}" if digest else label
