"""The asynchronous client: httpx under the pure protocol.

Owns: the connection. Does not know paths or bodies.
"""

import asyncio
from asyncio import sleep as pause
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tsugiki_client import protocol
from tsugiki_client.client import TIMEOUT, auth_headers, connection_failed, parsed
from tsugiki_client.errors import TsugikiClientError
from tsugiki_client.protocol import Call, Messages
from tsugiki_client.results import (
    HistoryEntry,
    Model,
    Pushed,
    PushOptions,
    Reply,
    Variant,
    VariantEvent,
)
from tsugiki_client.upload import Upload

T = TypeVar("T")


class AsyncClient:
    """Calls to one server. Sampling options are the fields of OpenAI's API, by keyword."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers=auth_headers(api_key), timeout=timeout, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T], content: AsyncIterator[bytes] | None = None) -> T:
        """Make a call of tsugiki_client.protocol.

        Raises:
            TsugikiClientError: what the server refused, or that it gave no answer.
        """
        with _connected(self._http):
            response = await self._http.request(
                call.method,
                call.path,
                json=call.json,
                params=call.params,
                headers=call.headers,
                content=content,
            )
        return parsed(call, response)

    async def chat(self, model: str, messages: Messages, **options: Any) -> Reply:
        """The answer to a conversation."""
        return await self.send(protocol.chat(model, messages, options))

    async def complete(self, model: str, prompt: str | Sequence[Any], **options: Any) -> Reply:
        """The continuation of a prompt (text or token ids)."""
        return await self.send(protocol.complete(model, prompt, options))

    def stream_chat(self, model: str, messages: Messages, **options: Any) -> AsyncIterator[str]:
        """The answer to a conversation, piece by piece."""
        return self._stream(protocol.streamed(protocol.chat(model, messages, options)))

    def stream_complete(
        self, model: str, prompt: str | Sequence[Any], **options: Any
    ) -> AsyncIterator[str]:
        """The continuation of a prompt, piece by piece."""
        return self._stream(protocol.streamed(protocol.complete(model, prompt, options)))

    async def models(self) -> list[Model]:
        """The base first, then the variants."""
        return await self.send(protocol.models())

    async def variants(self) -> list[Variant]:
        """Every version of every variant."""
        return await self.send(protocol.variants())

    async def variant(self, name: str) -> Variant:
        """The active version of one variant."""
        return await self.send(protocol.variant(name))

    async def push(
        self,
        name: str,
        file: Path | str,
        *,
        pin: bool = False,
        activate: bool = True,
        if_absent: bool = False,
        signature: str | None = None,
    ) -> Pushed:
        """Upload a variant file, streamed from disk; returns the version and whether it is new.

        A connection that breaks is taken up again where the server's bytes end. `signature` is
        base64 of ed25519 over the file's digest string.
        """
        upload = Upload(name, Path(file), PushOptions(pin, activate, if_absent, signature))
        while True:
            try:
                step = await self.send(upload.call(), content=_off_loop(upload.content()))
            except TsugikiClientError as error:
                await pause(upload.failed(error))
            else:
                if (pushed := upload.took(step)) is not None:
                    return pushed

    async def delete(self, name: str, digest: str | None = None) -> int:
        """Remove a variant, or one version that is not active; returns the bytes freed."""
        return await self.send(protocol.delete(name, digest))

    async def activate(self, name: str, digest: str) -> Variant:
        """Make a version the one that the bare name means."""
        return await self.send(protocol.activate(name, digest))

    async def canary(self, name: str, digest: str, percent: float) -> Variant:
        """Answer so many percent of the name's users with a version; 0 ends it."""
        return await self.send(protocol.canary(name, digest, percent))

    async def history(self, name: str) -> list[HistoryEntry]:
        """What was done to a variant, oldest first."""
        return await self.send(protocol.history(name))

    async def load(self, name: str) -> Variant:
        """Make it resident."""
        return await self.send(protocol.operate(name, "load"))

    async def unload(self, name: str) -> Variant:
        """Drop it from memory."""
        return await self.send(protocol.operate(name, "unload"))

    async def pin(self, name: str) -> Variant:
        """Keep it resident."""
        return await self.send(protocol.operate(name, "pin"))

    async def unpin(self, name: str) -> Variant:
        """Let it be evicted when idle."""
        return await self.send(protocol.operate(name, "unpin"))

    async def rollback(self, name: str) -> Variant:
        """Serve the previous version again."""
        return await self.send(protocol.operate(name, "rollback"))

    async def health(self) -> dict[str, Any]:
        """How the server computes."""
        return await self.send(protocol.health())

    async def events(self, after: int | None = None) -> AsyncIterator[VariantEvent]:
        """Changes of variants as they happen, until the server ends the stream.

        With `after`, a sequence number, first those behind it that the server remembers.
        """
        async for line in self._lines(protocol.events(after)):
            if (event := protocol.variant_event(line)) is not None:
                yield event

    async def _stream(self, call: Call[Reply]) -> AsyncIterator[str]:
        async for line in self._lines(call):
            event = protocol.stream_event(line)
            if event is not None and (piece := protocol.event_text(event)):
                yield piece

    async def _lines(self, call: Call[T]) -> AsyncIterator[str]:
        with _connected(self._http):
            async with self._http.stream(
                call.method, call.path, json=call.json, headers=call.headers
            ) as response:
                if response.is_error:
                    await response.aread()
                    parsed(call, response)
                async for line in response.aiter_lines():
                    yield line


def _off_loop(chunks: Iterator[bytes] | None) -> AsyncIterator[bytes] | None:
    """The same pieces, read on worker threads."""
    return None if chunks is None else _read(chunks)


async def _read(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await asyncio.to_thread(next, chunks, b"")) != b"":
        yield chunk


@contextmanager
def _connected(http: httpx.AsyncClient) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise connection_failed(error, http.base_url) from error
