"""Streams and disconnects over a real socket."""

import asyncio
import threading
from collections.abc import AsyncGenerator

import httpx

from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.request import FinishReason

BODY = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}]}


class Endless:
    """One token, then silence until the request is closed."""

    def __init__(self, first: bool = True) -> None:
        self.started = threading.Event()
        self.closed = threading.Event()
        self._first = first

    async def __call__(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        try:
            self.started.set()
            if self._first:
                yield GenerationEvent("h", (104,))
            await asyncio.Event().wait()
        finally:
            self.closed.set()


def test_a_stream_arrives_before_the_answer_is_complete_and_leaving_aborts_it(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.script = endless = Endless()
    with (
        httpx.Client(base_url=live.url) as http,
        http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert "assistant" in next(lines)
        assert not endless.closed.is_set()
    assert endless.closed.wait(timeout=10)


def test_leaving_before_the_first_token_aborts_a_stream(
    live: LiveServer, engine: FakeEngine
) -> None:
    engine.script = endless = Endless(first=False)
    leave_early(live, {**BODY, "stream": True, "n": 3}, endless)


def test_leaving_a_plain_request_aborts_it(live: LiveServer, engine: FakeEngine) -> None:
    engine.script = endless = Endless()
    leave_early(live, BODY, endless)


def leave_early(live: LiveServer, body: dict[str, object], endless: Endless) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(base_url=live.url) as http:
            request = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(endless.started.wait, 10)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    asyncio.run(ask())
    assert endless.closed.wait(timeout=10)


def test_one_failing_sequence_ends_its_siblings(live: LiveServer, engine: FakeEngine) -> None:
    closed = threading.Event()

    async def second_fails(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        yield GenerationEvent("h", (104,))
        if spec.request_id.endswith("-1"):
            raise RuntimeError("boom")
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    engine.script = second_fails
    response = httpx.post(f"{live.url}/v1/chat/completions", json={**BODY, "n": 2})
    assert response.status_code == 500
    assert closed.wait(timeout=10)


def test_many_clients_stream_at_once(live: LiveServer) -> None:
    async def ask(http: httpx.AsyncClient) -> str:
        response = await http.post("/v1/chat/completions", json={**BODY, "stream": True})
        return response.text

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(base_url=live.url) as http:
            return await asyncio.gather(*(ask(http) for _ in range(20)))

    answers = asyncio.run(ask_all())
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers)


def test_a_reader_that_stalls_holds_up_nobody_and_its_events_wait_as_one(
    live: LiveServer, engine: FakeEngine
) -> None:
    pieces, size = 400, 100_000
    told = threading.Event()

    async def flood(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        for number in range(pieces):
            end = FinishReason.LENGTH if number == pieces - 1 else None
            yield GenerationEvent("x" * size, (120,), finish_reason=end)
            await asyncio.sleep(0)
        told.set()

    with httpx.Client(base_url=live.url) as http:
        engine.script = flood
        body = {"model": "tuned", "prompt": "x", "stream": True, "max_tokens": 50}
        with http.stream("POST", "/v1/completions", json=body) as stalled:
            assert told.wait(timeout=10)
            engine.script = None
            other = httpx.post(f"{live.url}/v1/chat/completions", json=BODY)
            assert other.json()["choices"][0]["message"]["content"] == "hello"
            lines = [line for line in stalled.iter_lines() if line.startswith("data: {")]
    assert sum(line.count("x") for line in lines) >= pieces * size
    assert len(lines) < pieces / 2
