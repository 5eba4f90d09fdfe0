"""GET /v1/variants/events: the wire form, resuming, who sees what, and the end."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tests.api.test_auth import KEYS, LIMITED, bearer
from tsugiki.api import variant_stream
from tsugiki.engine.variant_info import VariantEvent

DIGEST = "sha256:" + "a" * 64
HAPPENED = [
    VariantEvent(7, 1.5, "tuned", DIGEST, "uploaded", "10 bytes"),
    VariantEvent(8, 1.6, "adapter", DIGEST, "activated"),
    VariantEvent(9, 1.7, "tuned", DIGEST, "ready"),
]


def events(text: str) -> list[dict[str, Any]]:
    """The payloads of a stream."""
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:"))
    return [json.loads(line) for line in lines]


def test_an_event_is_written_with_its_sequence_and_kind(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.happened = HAPPENED[:1]
    response = client.get("/v1/variants/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    comment, event = response.text.strip().split("\n\n")
    assert comment.startswith(":")
    assert event.splitlines()[:2] == ["id: 7", "event: uploaded"]
    assert events(response.text) == [
        {
            "sequence": 7,
            "at": 1.5,
            "name": "tuned",
            "digest": DIGEST,
            "kind": "uploaded",
            "detail": "10 bytes",
        }
    ]


def test_a_client_that_comes_back_goes_on_behind_what_it_saw(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.happened = HAPPENED
    response = client.get("/v1/variants/events", headers={"Last-Event-ID": "7"})
    assert [event["sequence"] for event in events(response.text)] == [8, 9]
    assert client.get("/v1/variants/events", headers={"Last-Event-ID": "x"}).status_code == 400


def test_a_key_sees_the_events_of_its_variants_only(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    engine.happened = HAPPENED
    with make_client(keys=KEYS) as client:
        response = client.get("/v1/variants/events", headers=bearer(LIMITED))
    assert [event["name"] for event in events(response.text)] == ["tuned", "tuned"]


def test_silence_is_broken_by_comments(
    live: LiveServer, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_stream, "KEEP_ALIVE_SECONDS", 0.01)
    engine.more_events = asyncio.Event()
    seen = []
    with httpx.stream("GET", f"{live.url}/v1/variants/events") as response:
        for line in response.iter_lines():
            seen.append(line)
            if seen.count(": keep-alive") == 2:
                break
    assert events("\n".join(seen)) == []


def test_a_client_that_leaves_closes_its_events(live: LiveServer, engine: FakeEngine) -> None:
    closed = asyncio.Event()

    async def endless(after: int | None = None) -> AsyncGenerator[VariantEvent, None]:
        try:
            yield HAPPENED[0]
            await asyncio.Event().wait()
        finally:
            closed.set()

    engine.events = endless  # type: ignore[method-assign]
    with httpx.stream("GET", f"{live.url}/v1/variants/events") as response:
        lines = response.iter_lines()
        assert any(line.startswith("data:") for line in lines)
    assert live.loop is not None
    asyncio.run_coroutine_threadsafe(closed.wait(), live.loop).result(timeout=10)


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variant_stream, "STALLED_SECONDS", 0.01)
    closed = []

    async def source() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "data: {}\n\n"
        finally:
            closed.append(True)

    async def stalled(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def scenario() -> None:
        async with asyncio.timeout(10):
            await variant_stream.WatchedStream(source()).stream_response(stalled)

    asyncio.run(scenario())
    assert closed == [True]
