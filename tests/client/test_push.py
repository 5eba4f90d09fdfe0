"""Uploads of the client: through broken connections, and no further than makes sense."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import tsugiki_client
from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tests.api.test_uploads import MIB
from tsugiki.errors import WrongBase
from tsugiki_client import AsyncClient, Client, TsugikiClientError
from tsugiki_client.results import PushOptions
from tsugiki_client.upload import ATTEMPTS, LONGEST_PAUSE, Upload


class Flaky(httpx.BaseTransport):
    """Breaks the connection within the first uploads, and before the first question is answered."""

    def __init__(self, breaks: int) -> None:
        self._inner = httpx.HTTPTransport()
        self._breaks = breaks
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        span = request.headers["content-range"]
        self.asked.append(span)
        if self._breaks:
            self._breaks -= 1
            if "*" in span:
                raise httpx.ReadError("gone")
            request.stream = Broken(request.stream)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


class Broken(httpx.SyncByteStream):
    """The first MiB of a body, then a broken connection."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def __iter__(self) -> Any:
        yield next(iter(self._whole))
        raise httpx.WriteError("broken pipe")


class AsyncFlaky(httpx.AsyncBaseTransport):
    """The same for the asynchronous client: breaks in the first upload."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._broken = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self._broken:
            self._broken = True
            request.stream = AsyncBroken(request.stream)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class AsyncBroken(httpx.AsyncByteStream):
    """See Broken."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._whole:
            yield chunk
            raise httpx.WriteError("broken pipe")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited."""
    asked: list[float] = []

    async def pause(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr("tsugiki_client.client.pause", asked.append)
    monkeypatch.setattr("tsugiki_client.async_client.pause", pause)
    return asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that a limit of two MiB lets in."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(MIB + MIB // 2))
    return file


def test_a_broken_upload_is_taken_up_where_the_servers_bytes_end(
    live: LiveServer, engine: FakeEngine, file: Path, pauses: list[float]
) -> None:
    transport = Flaky(breaks=2)
    with Client(live.url, transport=transport) as client:
        version, new = client.push("new", file, signature="c2ln")
    assert (version.name, new) == ("new", True)
    assert engine.uploaded == file.read_bytes()
    assert engine.signatures == ["c2ln"]
    total = file.stat().st_size
    whole, question, again, rest = transport.asked
    assert whole == f"bytes 0-{total - 1}/{total}"
    assert question == again == f"bytes */{total}"
    assert rest.endswith(f"-{total - 1}/{total}")
    assert pauses == [0.5, 1.0]


def test_the_asynchronous_client_resumes_too(
    live: LiveServer, engine: FakeEngine, file: Path, pauses: list[float]
) -> None:
    async def push() -> bool:
        async with AsyncClient(live.url, transport=AsyncFlaky()) as client:
            return (await client.push("new", file))[1]

    assert asyncio.run(push())
    assert engine.uploaded == file.read_bytes()
    assert pauses == [0.5]


def test_a_refusal_is_final(live: LiveServer, engine: FakeEngine, file: Path) -> None:
    engine.variant_error = WrongBase("made for another base")
    transport = Flaky(breaks=0)
    with (
        Client(live.url, transport=transport) as client,
        pytest.raises(tsugiki_client.InvalidVariant, match="another base"),
    ):
        client.push("new", file)
    assert len(transport.asked) == 1


def test_nobody_there_is_given_up_after_a_while(file: Path, pauses: list[float]) -> None:
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(tsugiki_client.ConnectionFailed),
    ):
        client.push("new", file)
    assert pauses == [0.5, 1, 2, 4, 8]


def test_progress_gives_new_patience(file: Path) -> None:
    upload = Upload("new", file, PushOptions())
    gone = tsugiki_client.ConnectionFailed("gone")
    for step in range(3 * ATTEMPTS):
        assert upload.failed(gone) <= LONGEST_PAUSE
        assert upload.call().headers["Content-Range"].startswith("bytes *")
        assert upload.took(step + 1) is None
        assert upload.call().headers["Content-Range"].startswith(f"bytes {step + 1}-")


def test_the_server_says_how_long_to_wait(file: Path) -> None:
    upload = Upload("new", file, PushOptions())
    assert upload.failed(tsugiki_client.Unavailable("draining", retry_after=7)) == 7


FINAL: list[Callable[[], TsugikiClientError]] = [
    lambda: tsugiki_client.PayloadTooLarge("large"),
    lambda: tsugiki_client.StorageFull("full"),
    lambda: tsugiki_client.AuthenticationFailed("who"),
    lambda: tsugiki_client.Conflict("exists", detail={"code": "conflict"}),
]


@pytest.mark.parametrize("error", FINAL)
def test_what_no_repetition_mends_is_raised(
    file: Path, error: Callable[[], TsugikiClientError]
) -> None:
    wrong = error()
    with pytest.raises(type(wrong)):
        Upload("new", file, PushOptions()).failed(wrong)


def test_an_offset_that_the_server_corrects_is_asked_for(file: Path) -> None:
    upload = Upload("new", file, PushOptions())
    upload.failed(tsugiki_client.Conflict("go on at 3", detail={"code": "wrong_offset"}))
    assert upload.content() is None


def test_an_empty_file_is_not_sent(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(tsugiki_client.InvalidVariant, match="is empty"):
        Upload("new", empty, PushOptions())
