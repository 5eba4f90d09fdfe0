"""POST /v1/chat/completions over a scripted engine."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fake_engine import (
    BASE,
    BASE_DIGEST,
    EOS,
    MAX_MODEL_LEN,
    FakeEngine,
    FakeText,
    one_step,
    usage_of,
)
from tsugiki.api.responses import ChatCompletion
from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.request import FinishReason
from tsugiki.errors import Overloaded

HELLO = [{"role": "user", "content": "hi"}]


def ask(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={"model": "tuned", "messages": HELLO, **fields})


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_has_openais_shape_and_the_identity_headers(
    client: TestClient, engine: FakeEngine
) -> None:
    response = ask(client)
    assert response.status_code == 200
    body = response.json()
    ChatCompletion.model_validate(body)
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "hello",
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == usage_of(5, 5)
    digest = engine.versions["tuned"].digest
    assert response.headers["x-tsugiki-variant"] == f"tuned@{digest}"
    assert digest[7:23] in body["system_fingerprint"]
    assert response.headers["x-request-id"]


def test_the_base_is_named_by_its_fingerprint(client: TestClient) -> None:
    response = ask(client, model=BASE)
    assert response.headers["x-tsugiki-variant"] == f"{BASE}@{BASE_DIGEST}"


def test_a_request_id_comes_back_and_a_hostile_one_does_not(client: TestClient) -> None:
    body = {"model": "tuned", "messages": HELLO}
    good = client.post("/v1/chat/completions", json=body, headers={"x-request-id": "abc-1"})
    bad = client.post("/v1/chat/completions", json=body, headers={"x-request-id": "a b<script>"})
    assert good.headers["x-request-id"] == "abc-1"
    assert bad.headers["x-request-id"] != "a b<script>"


def test_null_means_default_and_unknown_fields_are_accepted(
    client: TestClient, engine: FakeEngine
) -> None:
    sampling = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "logit_bias",
        "min_tokens",
    ]
    lengths = ["max_tokens", "max_completion_tokens", "n", "presence_penalty"]
    others = ["logprobs", "top_logprobs", "stream", "stream_options", "tools", "tool_choice"]
    more = ["response_format", "user", "echo", "best_of"]
    fields = dict.fromkeys([*sampling, *lengths, *others, *more])
    assert ask(client, **fields, something_new={"a": 1}).status_code == 200
    params = engine.specs[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.max_tokens == MAX_MODEL_LEN - 5
    assert params.logprobs is None
    assert params.stop_token_ids == {EOS}


def test_the_variants_generation_defaults_rule_unless_the_request_says_otherwise(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.text_side = FakeText({"temperature": 0.3, "top_p": 0.8, "repetition_penalty": 1.1})
    ask(client, top_p=0.5)
    params = engine.specs[0].params
    assert (params.temperature, params.top_p, params.repetition_penalty) == (0.3, 0.5, 1.1)


def test_every_sampling_field_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    response = ask(
        client,
        temperature=0,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=7,
        stop=["x", "yz"],
        stop_token_ids=[9],
        include_stop_str_in_output=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"65": -100, "66": 5.5},
        min_tokens=1,
        ignore_eos=True,
        max_completion_tokens=4,
        max_tokens=3,
        user="somebody",
    )
    assert response.status_code == 200
    spec = engine.specs[0]
    params = spec.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.9, 5, 0.1)
    assert (params.seed, params.min_tokens, params.ignore_eos) == (7, 1, True)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.repetition_penalty == 1.2
    assert params.logit_bias == ((65, -100.0), (66, 5.5))
    assert params.stop_token_ids == {9}
    assert params.max_tokens == 4
    assert (spec.stop, spec.include_stop) == (("x", "yz"), True)
    assert spec.tenant == "tuned"


def test_n_answers_have_their_own_seeds(client: TestClient, engine: FakeEngine) -> None:
    body = ask(client, n=3, seed=5).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [spec.params.seed for spec in engine.specs] == [5, 6, 7]
    assert len({spec.request_id for spec in engine.specs}) == 3
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 15


def test_logprobs_name_each_token_with_its_alternatives(client: TestClient) -> None:
    body = ask(client, logprobs=True, top_logprobs=2).json()
    ChatCompletion.model_validate(body)
    content = body["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == list("hello")
    assert content[0]["bytes"] == [104]
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["h", "i"]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    response = ask(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_with_usage_ends_with_a_chunk_without_choices(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": None}
    chunks = events(ask(client, stream=True, stream_options=options).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_a_stream_can_carry_usage_in_every_chunk(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(ask(client, stream=True, stream_options=options).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_streams_of_n_choices_are_told_apart_by_index(client: TestClient) -> None:
    chunks = events(ask(client, stream=True, n=2, logprobs=True).text)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "hello"
        tokens = [t["token"] for c in mine for t in (c["logprobs"] or {"content": []})["content"]]
        assert tokens == list("hello")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_is_understood_but_unsupported_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    error = ask(client, **fields).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported", param)


def test_harmless_forms_of_unsupported_fields_pass(client: TestClient) -> None:
    fields = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
    }
    assert ask(client, **fields).status_code == 200


def test_text_parts_are_joined_and_other_parts_refused(
    client: TestClient, engine: FakeEngine
) -> None:
    text = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ask(client, messages=[{"role": "user", "content": text}]).status_code == 200
    assert FakeText().decode(engine.specs[0].prompt_token_ids) == "u:a\nb\n"
    image = [{"type": "image_url", "image_url": {"url": "data:"}}]
    refused = ask(client, messages=[{"role": "user", "content": image}])
    assert refused.status_code == 400
    assert "image_url" in refused.json()["error"]["message"]


def test_chat_without_a_template_says_so(client: TestClient, engine: FakeEngine) -> None:
    engine.text_side = FakeText(template=False)
    response = ask(client)
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"n": 0},
        {"n": 129},
        {"stop": ""},
        {"stop": ["x", ""]},
        {"max_tokens": 0},
        {"max_tokens": "5"},
        {"presence_penalty": 3},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"256": 1}},
        {"stop_token_ids": [256]},
        {"min_tokens": 10, "max_tokens": 5},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "hi"}]},
        {"model": None},
        {"seed": 2**63},
    ],
)
def test_a_bad_value_is_a_400_that_names_the_field(
    client: TestClient, fields: dict[str, Any]
) -> None:
    response = ask(client, **fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] in fields


def test_the_context_limit_names_what_would_fit(client: TestClient) -> None:
    error = ask(client, max_tokens=MAX_MODEL_LEN).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"at most {MAX_MODEL_LEN - 5}" in error["message"]


def test_an_overloaded_engine_is_a_429_with_retry_after(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.submit_error = Overloaded("the queue is full", retry_after=2.3)
    for fields in ({}, {"stream": True}, {"n": 4}):
        response = ask(client, **fields)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        assert response.json()["error"]["code"] == "overloaded"


async def fail_after_one(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
    yield GenerationEvent("h", (104,))
    await one_step()
    yield GenerationEvent("", (), finish_reason=FinishReason.ERROR, error="the step raised")


def test_a_failed_step_is_a_500_or_a_last_event(client: TestClient, engine: FakeEngine) -> None:
    engine.script = fail_after_one
    whole = ask(client)
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "engine_failure"
    chunks = events(ask(client, stream=True).text)
    assert chunks[-1]["error"]["message"] == "the step raised"


async def abort(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
    yield GenerationEvent("", (), finish_reason=FinishReason.ABORT)


def test_an_aborted_request_is_a_503(client: TestClient, engine: FakeEngine) -> None:
    engine.script = abort
    assert ask(client).status_code == 503


async def cold(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
    yield GenerationEvent("h", (104,), variant_load_ms=12.5)
    end = FinishReason.STOP
    yield GenerationEvent("", (), finish_reason=end, stop_reason="\n", variant_load_ms=12.5)


def test_waiting_for_a_cold_variant_shows_in_usage(client: TestClient, engine: FakeEngine) -> None:
    engine.script = cold
    body = ask(client).json()
    assert body["usage"]["variant_load_ms"] == 12.5
    assert body["choices"][0]["stop_reason"] == "\n"


async def buggy(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
    yield GenerationEvent("h", (104,))
    await one_step()
    yield GenerationEvent("", None, finish_reason="secret")  # type: ignore[arg-type]


def test_a_bug_is_a_500_that_tells_no_details(client: TestClient, engine: FakeEngine) -> None:
    engine.script = buggy
    streamed = ask(client, stream=True)
    assert events(streamed.text)[-1]["error"]["code"] == "internal_error"
    engine.submit_error = ZeroDivisionError("secret detail")
    for stream in (False, True):
        assert (whole := ask(client, stream=stream)).status_code == 500
        assert "secret" not in whole.text + streamed.text
