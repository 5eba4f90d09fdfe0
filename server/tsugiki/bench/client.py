"""Streams one request from an OpenAI-compatible server, cheaply: it shares cores with the server.

Owns: the HTTP body, reading the event stream, the kinds of errors. Does not know why or when a
request is sent. The clock is read once per network read, before anything is parsed.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from tsugiki.bench.events import EventReader, ServerSaidError
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.workload import Ask


class LoadClient:
    """One tenant's connections to one server; an asynchronous context manager."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        chat: bool = False,
        ignore_eos: bool = True,
        timeout: float = 600.0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            url: the server, without /v1.
            chat: /v1/chat/completions instead of /v1/completions; prompts must be text.
            ignore_eos: ask for exactly `max_tokens`; fewer is then an error.
            timeout: seconds until a request is given up.
            extra: fields added to every body.
        """
        self._url = url.rstrip("/") + ("/v1/chat/completions" if chat else "/v1/completions")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._chat = chat
        self._ignore_eos = ignore_eos
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._extra = dict(extra or {})

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=self._headers, timeout=self._timeout
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def send(self, ask: Ask, begin: float) -> Outcome:
        """Send it and read the answer to its end; never raises for what the server does."""
        sent, reader = time.perf_counter(), EventReader(ask.leave_after)
        try:
            await self._stream(ask, reader)
            error = self._wrong(ask, reader)
        except (aiohttp.ClientError, ServerSaidError, TimeoutError, OSError) as raised:
            error = _kind(raised)
        return Outcome(
            model=ask.model,
            begin=begin,
            sent=sent,
            end=time.perf_counter(),
            moments=reader.moments,
            tokens=reader.tokens,
            prompt_tokens=reader.prompt_tokens,
            cached_tokens=reader.cached_tokens,
            left=reader.left,
            error=error,
        )

    async def _stream(self, ask: Ask, reader: EventReader) -> None:
        async with self._session.post(self._url, data=self._body(ask)) as answer:
            if answer.status != 200:
                raise ServerSaidError(f"http {answer.status}{_code(await answer.read())}")
            content = answer.content
            while not reader.left and (piece := await content.readany()):
                reader.feed(piece, time.perf_counter())
            if reader.left:
                answer.close()

    def _body(self, ask: Ask) -> bytes:
        body: dict[str, Any] = {
            "model": ask.model,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        if self._ignore_eos:
            body["ignore_eos"] = True
        if self._chat:
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            body["prompt"] = ask.prompt
        return json.dumps(body).encode()

    def _wrong(self, ask: Ask, reader: EventReader) -> str | None:
        """What is wrong with an answer that ended without an error."""
        if reader.left:
            return None
        if not reader.done:
            return "cut off: the stream ended before [DONE]"
        if not reader.moments:
            return "empty: no token came"
        if self._ignore_eos and reader.tokens != ask.max_tokens:
            return f"length: {reader.tokens} tokens instead of {ask.max_tokens}"
        return None


def _kind(error: Exception) -> str:
    """A short name under which equal errors are counted."""
    if isinstance(error, ServerSaidError):
        return str(error)
    if isinstance(error, asyncio.TimeoutError):
        return "timeout"
    return f"connection: {type(error).__name__}"


def _code(body: bytes) -> str:
    """The code in OpenAI's error object, with a space before it."""
    try:
        error = json.loads(body)["error"]
        return f" {error.get('code') or error.get('type')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
