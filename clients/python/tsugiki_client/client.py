"""The synchronous client: httpx under the pure protocol.

Owns: the connection. Does not know paths or bodies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep as pause
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tsugiki_client import protocol
from tsugiki_client.errors import ConnectionFailed, TsugikiClientError
from tsugiki_client.protocol import Answer, Call, Messages
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
TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class Client:
    """Calls to one server. Sampling options are the fields of OpenAI's API, by keyword."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: httpx.Timeout | float = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=url, headers=auth_headers(api_key), timeout=timeout, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T], content: Iterator[bytes] | None = None) -> T:
        """Make a call of tsugiki_client.protocol.

        Raises:
            TsugikiClientError: what the server refused, or that it gave no answer.
        """
        with _connected(self._http):
            response = self._http.request(
                call.method,
                call.path,
                json=call.json,
                params=call.params,
                headers=call.headers,
                content=content,
            )
        return parsed(call, response)

    def chat(self, model: str, messages: Messages, **options: Any) -> Reply:
        """The answer to a conversation."""
        return self.send(protocol.chat(model, messages, options))

    def complete(self, model: str, prompt: str | Sequence[Any], **options: Any) -> Reply:
        """The continuation of a prompt (text or token ids)."""
        return self.send(protocol.complete(model, prompt, options))

    def stream_chat(self, model: str, messages: Messages, **options: Any) -> Iterator[str]:
        """The answer to a conversation, piece by piece."""
        return self._stream(protocol.streamed(protocol.chat(model, messages, options)))

    def stream_complete(
        self, model: str, prompt: str | Sequence[Any], **options: Any
    ) -> Iterator[str]:
        """The continuation of a prompt, piece by piece."""
        return self._stream(protocol.streamed(protocol.complete(model, prompt, options)))

    def models(self) -> list[Model]:
        """The base first, then the variants."""
        return self.send(protocol.models())

    def variants(self) -> list[Variant]:
        """Every version of every variant."""
        return self.send(protocol.variants())

    def variant(self, name: str) -> Variant:
        """The active version of one variant."""
        return self.send(protocol.variant(name))

    def push(
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
                step = self.send(upload.call(), content=upload.content())
            except TsugikiClientError as error:
                pause(upload.failed(error))
            else:
                if (pushed := upload.took(step)) is not None:
                    return pushed

    def delete(self, name: str, digest: str | None = None) -> int:
        """Remove a variant, or one version that is not active; returns the bytes freed."""
        return self.send(protocol.delete(name, digest))

    def activate(self, name: str, digest: str) -> Variant:
        """Make a version the one that the bare name means."""
        return self.send(protocol.activate(name, digest))

    def canary(self, name: str, digest: str, percent: float) -> Variant:
        """Answer so many percent of the name's users with a version; 0 ends it."""
        return self.send(protocol.canary(name, digest, percent))

    def history(self, name: str) -> list[HistoryEntry]:
        """What was done to a variant, oldest first."""
        return self.send(protocol.history(name))

    def load(self, name: str) -> Variant:
        """Make it resident."""
        return self.send(protocol.operate(name, "load"))

    def unload(self, name: str) -> Variant:
        """Drop it from memory."""
        return self.send(protocol.operate(name, "unload"))

    def pin(self, name: str) -> Variant:
        """Keep it resident."""
        return self.send(protocol.operate(name, "pin"))

    def unpin(self, name: str) -> Variant:
        """Let it be evicted when idle."""
        return self.send(protocol.operate(name, "unpin"))

    def rollback(self, name: str) -> Variant:
        """Serve the previous version again."""
        return self.send(protocol.operate(name, "rollback"))

    def health(self) -> dict[str, Any]:
        """How the server computes."""
        return self.send(protocol.health())

    def events(self, after: int | None = None) -> Iterator[VariantEvent]:
        """Changes of variants as they happen, until the server ends the stream.

        With `after`, a sequence number, first those behind it that the server remembers.
        """
        for line in self._lines(protocol.events(after)):
            if (event := protocol.variant_event(line)) is not None:
                yield event

    def _stream(self, call: Call[Reply]) -> Iterator[str]:
        return protocol.stream_text(self._lines(call))

    def _lines(self, call: Call[T]) -> Iterator[str]:
        with (
            _connected(self._http),
            self._http.stream(
                call.method, call.path, json=call.json, headers=call.headers
            ) as response,
        ):
            if response.is_error:
                response.read()
                parsed(call, response)
            yield from response.iter_lines()


def auth_headers(api_key: str | None) -> dict[str, str]:
    """The Authorization header of a key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def parsed(call: Call[T], response: httpx.Response) -> T:
    """The result in an answer; raises what it stands for if it is an error."""
    answer = Answer(response.status_code, response.headers, response.content)
    protocol.raise_for_error(answer)
    return call.parse(answer)


def connection_failed(error: httpx.TransportError, url: httpx.URL) -> ConnectionFailed:
    """What a transport error means to a user."""
    return ConnectionFailed(f"no answer from {url}: {error or type(error).__name__}")


@contextmanager
def _connected(http: httpx.Client) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise connection_failed(error, http.base_url) from error
