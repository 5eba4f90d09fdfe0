"""A server at the HTTP seam: answers as OpenAI-compatible ones do, remembers what was asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class FakeServer:
    """Streams one event for each token. `script` replaces the answer to a model's requests."""

    usage: bool = True
    script: dict[str, Iterable[bytes] | web.Response] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    hung_up: int = 0

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        """Serves until the block ends."""
        app = web.Application()
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/v1/models", self._models)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "first", "object": "model"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        scripted = self.script.get(body["model"])
        if isinstance(scripted, web.Response):
            return web.Response(status=scripted.status, text=scripted.text)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self._stream(request, scripted or self.events(body))
        except (ConnectionResetError, asyncio.CancelledError):
            self.hung_up += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, events: Iterable[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
            await asyncio.sleep(0)
        return response

    def events(self, body: dict[str, Any]) -> list[bytes]:
        """The usual answer to a request."""
        chat = "messages" in body
        choices: list[dict[str, Any]] = [
            {"delta": {"content": "a"}} if chat else {"text": "a"}
            for _ in range(body["max_tokens"])
        ]
        if chat:
            choices.insert(0, {"delta": {"role": "assistant", "content": ""}})
        choices.append({"delta": {}} if chat else {"text": ""})
        choices[-1]["finish_reason"] = "length"
        payloads: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
        if self.usage:
            usage = {"completion_tokens": body["max_tokens"], "prompt_tokens": 7}
            usage["prompt_tokens_details"] = {"cached_tokens": 3}  # type: ignore[assignment]
            payloads.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(payload)}\n\n".encode() for payload in payloads]
        return [*lines, b"data: [DONE]\n\n"]


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()
