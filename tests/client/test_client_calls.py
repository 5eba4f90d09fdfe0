"""Both clients against a real socket: the same calls, the same results."""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import tsugiki_client
from tests.api.fake_engine import BASE, FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.engine.variant_info import VariantEvent
from tsugiki.errors import Overloaded, WrongBase
from tsugiki_client import AsyncClient, Client, TsugikiClientError

HELLO = [{"role": "user", "content": "hi"}]
Call = Callable[[Any], Any]


async def finished(value: Any) -> Any:
    """A value, an awaitable's value, or all pieces of a stream."""
    if isinstance(value, Awaitable):
        return await value
    if hasattr(value, "__aiter__"):
        return [piece async for piece in value]
    return value


def call_once(url: str, call: Call) -> Any:
    """The result of a call of the synchronous client."""
    with Client(url) as client:
        value = call(client)
        return list(value) if inspect.isgenerator(value) else value


def both(url: str, call: Call) -> Any:
    """The result of a call, the same from the synchronous and the asynchronous client."""
    plain = call_once(url, call)

    async def ask() -> Any:
        async with AsyncClient(url) as client:
            return await finished(call(client))

    assert type(asyncio.run(ask())) is type(plain)
    return plain


def failure(url: str, call: Call) -> TsugikiClientError:
    """The error of a call, of the same class from both clients."""
    with pytest.raises(TsugikiClientError) as sync_error:
        call_once(url, call)

    async def ask() -> None:
        async with AsyncClient(url) as client:
            await finished(call(client))

    with pytest.raises(type(sync_error.value)):
        asyncio.run(ask())
    return sync_error.value


def test_chat_and_completion_answer_with_text_usage_and_version(
    live: LiveServer, engine: FakeEngine
) -> None:
    reply = both(live.url, lambda client: client.chat("tuned", HELLO, temperature=0.5))
    assert (reply.text, reply.finish_reason) == ("hello", "stop")
    assert reply.usage["completion_tokens"] == 5
    assert reply.variant == f"tuned@{engine.versions['tuned'].digest}"
    assert reply.request_id
    assert engine.specs[0].params.temperature == 0.5
    assert both(live.url, lambda client: client.complete(BASE, [65])).text == "hello"


def test_streams_give_the_pieces(live: LiveServer) -> None:
    chat = both(live.url, lambda client: client.stream_chat("tuned", HELLO))
    completion = both(live.url, lambda client: client.stream_complete("tuned", "x", n=2))
    assert "".join(chat) == "".join(completion) == "hello"
    assert len(chat) == 5


def test_models_variants_and_health_are_listed(live: LiveServer) -> None:
    models = both(live.url, lambda client: client.models())
    assert [(model.id, model.parent) for model in models] == [(BASE, None), ("tuned", BASE)]
    versions = both(live.url, lambda client: client.variants())
    assert [version.name for version in versions] == ["tuned"]
    assert both(live.url, lambda client: client.variant("tuned")) == versions[0]
    assert both(live.url, lambda client: client.health())["status"] == "ok"


def test_a_push_streams_the_file_and_says_whether_it_is_new(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "new.safetensors"
    file.write_bytes(os.urandom(2**20 + 5))
    with Client(live.url) as client:
        version, new = client.push("new", file, pin=True)
        assert (version.name, version.pinned, new) == ("new", True, True)
    assert engine.uploaded == file.read_bytes()
    version, new = both(live.url, lambda client: client.push("new", file))
    assert not new
    taken = failure(live.url, lambda client: client.push("new", file, if_absent=True))
    assert isinstance(taken, tsugiki_client.Conflict)


def test_residency_operations(live: LiveServer) -> None:
    for operation in ("load", "pin", "unpin", "unload"):
        version = both(live.url, lambda client, name=operation: getattr(client, name)("tuned"))
        assert version.name == "tuned"
    conflict = failure(live.url, lambda client: client.rollback("tuned"))
    assert conflict.status == 409
    with Client(live.url) as client:
        assert client.delete("tuned") == 1000


def test_versions_are_activated_tried_and_looked_up(live: LiveServer, engine: FakeEngine) -> None:
    digest = engine.versions["tuned"].digest
    assert both(live.url, lambda client: client.activate("tuned", digest)).digest == digest
    canary = both(live.url, lambda client: client.canary("tuned", digest, 5))
    assert canary.canary_percent == 5
    history = both(live.url, lambda client: client.history("tuned"))
    assert [(entry.digest, entry.action) for entry in history] == [(digest, "upload")]
    active = failure(live.url, lambda client: client.delete("tuned", digest))
    assert isinstance(active, tsugiki_client.Conflict)


def test_events_are_streamed_from_where_one_left_off(live: LiveServer, engine: FakeEngine) -> None:
    engine.happened = [
        VariantEvent(sequence, 1.5, "tuned", "sha256:0", "ready") for sequence in (1, 2, 3)
    ]
    seen = both(live.url, lambda client: client.events())
    assert [event.sequence for event in seen] == [1, 2, 3]
    rest = both(live.url, lambda client: client.events(after=2))
    assert rest == [tsugiki_client.VariantEvent(3, 1.5, "tuned", "sha256:0", "ready")]


def test_errors_are_rebuilt_from_their_code(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    missing = failure(live.url, lambda client: client.chat("nobody", HELLO))
    assert isinstance(missing, tsugiki_client.NotFound)
    assert (missing.status, missing.code, missing.param) == (404, "model_not_found", "model")
    bad = failure(live.url, lambda client: client.chat("tuned", HELLO, n=0))
    assert isinstance(bad, tsugiki_client.InvalidRequest)
    engine.submit_error = Overloaded("full", retry_after=7)
    full = failure(live.url, lambda client: client.stream_chat("tuned", HELLO))
    assert isinstance(full, tsugiki_client.Overloaded)
    assert full.retry_after == 7
    engine.variant_error = WrongBase("made for another base")
    wrong = failure(live.url, lambda client: client.push("new", file))
    assert isinstance(wrong, tsugiki_client.InvalidVariant)
    assert str(wrong) == "made for another base"


def test_an_upload_over_the_limit_is_told_so(live: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * (2**21 + 1))
    error = failure(live.url, lambda client: client.push("big", file))
    assert isinstance(error, tsugiki_client.PayloadTooLarge)


def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    error = failure("http://127.0.0.1:9", lambda client: client.models())
    assert isinstance(error, tsugiki_client.ConnectionFailed)
    assert "127.0.0.1:9" in str(error)
