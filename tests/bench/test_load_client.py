"""What one request turns into, against a server at the HTTP seam."""

import asyncio
import json
from itertools import chain, repeat
from typing import Any

import pytest
from aiohttp import web

from tests.bench.conftest import FakeServer
from tsugiki.bench.client import LoadClient
from tsugiki.bench.events import EventReader, ServerSaidError
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.workload import Ask

PROMPT = [5, 6, 7]


def sent(server: FakeServer, ask: Ask, **options: Any) -> Outcome:
    async def run() -> Outcome:
        async with server.url() as url, LoadClient(url, **options) as client:
            return await client.send(ask, 0.0)

    return asyncio.run(run())


def test_a_complete_answer_has_a_moment_for_each_token_and_the_servers_counts(
    server: FakeServer,
) -> None:
    outcome = sent(server, Ask("base", PROMPT, 5))
    assert outcome.complete
    assert len(outcome.moments) == 5
    assert (outcome.tokens, outcome.prompt_tokens, outcome.cached_tokens) == (5, 7, 3)
    assert outcome.begin <= outcome.sent <= outcome.moments[0] <= outcome.end


def test_the_body_is_a_streaming_greedy_completion_of_exact_length(server: FakeServer) -> None:
    sent(server, Ask("base", PROMPT, 5), api_key="secret", extra={"priority": 1})
    assert server.bodies == [
        {
            "model": "base",
            "prompt": PROMPT,
            "max_tokens": 5,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "priority": 1,
        }
    ]
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_in_a_chat_the_event_with_the_role_is_not_the_first_token(server: FakeServer) -> None:
    outcome = sent(server, Ask("base", "hello", 5), chat=True)
    assert len(outcome.moments) == 5
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_without_usage_events_are_counted(server: FakeServer) -> None:
    server.usage = False
    outcome = sent(server, Ask("base", PROMPT, 5))
    assert (outcome.tokens, outcome.error) == (5, None)


def test_a_client_that_leaves_hangs_up_after_so_many_tokens(server: FakeServer) -> None:
    token = b'data: {"choices": [{"text": "a"}]}\n\n'
    server.script["base"] = chain([token] * 3, repeat(b": ping\n\n"))
    outcome = sent(server, Ask("base", PROMPT, 50, leave_after=3))
    assert outcome.left
    assert not outcome.complete
    assert (outcome.error, len(outcome.moments), server.hung_up) == (None, 3, 1)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([b'data: {"choices": [{"text": "a"}]}\n\n'], "cut off: the stream ended before [DONE]"),
        ([b"data: [DONE]\n\n"], "empty: no token came"),
        (
            [b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'],
            "length: 1 tokens instead of 5",
        ),
        ([b'data: {"error": {"code": "engine_failure"}}\n\n'], "stream error: engine_failure"),
        ([b"data: {oops\n\n"], "stream error: an event is not JSON"),
        (web.Response(status=429, text='{"error": {"code": "overloaded"}}'), "http 429 overloaded"),
        (web.Response(status=502, text="bad gateway"), "http 502"),
    ],
)
def test_what_goes_wrong_has_a_kind(
    server: FakeServer, answer: list[bytes] | web.Response, error: str
) -> None:
    server.script["base"] = answer
    assert sent(server, Ask("base", PROMPT, 5)).error == error


def test_a_server_that_is_not_there_is_an_error_of_the_outcome() -> None:
    async def run() -> Outcome:
        async with LoadClient("http://127.0.0.1:9") as client:
            return await client.send(Ask("base", PROMPT, 5), 0.0)

    assert asyncio.run(run()).error == "connection: ClientConnectorError"


def test_a_slow_answer_is_a_timeout(server: FakeServer) -> None:
    server.script["base"] = repeat(b": ping\n\n")
    assert sent(server, Ask("base", PROMPT, 5), timeout=0.05).error == "timeout"
    assert server.hung_up == 1


def test_events_are_read_however_the_network_cuts_them() -> None:
    stream = b"".join(FakeServer().events({"max_tokens": 3})).replace(b"\n", b"\r\n")
    reader = EventReader()
    for moment, byte in enumerate(stream):
        reader.feed(bytes([byte]), float(moment))
    assert reader.done
    assert reader.tokens == len(reader.moments) == 3
    assert reader.moments == sorted(set(reader.moments))


def test_half_a_character_is_a_token_though_its_text_is_empty() -> None:
    reader = EventReader()
    for choice in ({"text": "", "finish_reason": None}, {"text": "é"}):
        reader.feed(f"data: {json.dumps({'choices': [choice]})}\n\n".encode(), 0.0)
    assert reader.tokens == 2


def test_an_error_event_without_a_code_is_named_by_its_type() -> None:
    with pytest.raises(ServerSaidError, match="server_error"):
        EventReader().feed(b'data: {"error": {"type": "server_error"}}\n', 0.0)
