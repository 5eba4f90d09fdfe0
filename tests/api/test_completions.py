"""POST /v1/completions over a scripted engine."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fake_engine import MAX_MODEL_LEN, FakeEngine, usage_of
from tsugiki.api.responses import Completion
from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.request import FinishReason


def ask(client: TestClient, prompt: Any = "ab", **fields: Any) -> Any:
    return client.post("/v1/completions", json={"model": "tuned", "prompt": prompt, **fields})


def chunks_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(
    ("prompt", "sequences"),
    [
        ("ab", [(97, 98)]),
        ([97, 98], [(97, 98)]),
        (["ab", "c"], [(97, 98), (99,)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_every_form_of_prompt_is_understood(
    client: TestClient, engine: FakeEngine, prompt: Any, sequences: list[tuple[int, ...]]
) -> None:
    body = ask(client, prompt).json()
    Completion.model_validate(body)
    assert [spec.prompt_token_ids for spec in engine.specs] == sequences
    assert [choice["index"] for choice in body["choices"]] == list(range(len(sequences)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, sequences))


def test_batched_prompts_with_n_are_ordered_by_prompt(
    client: TestClient, engine: FakeEngine
) -> None:
    body = ask(client, ["ab", "c"], n=2, echo=True).json()
    assert [choice["text"] for choice in body["choices"]] == ["abhello"] * 2 + ["chello"] * 2
    assert body["usage"]["prompt_tokens"] == 3


def test_the_default_length_is_openais_and_shrinks_to_what_fits(
    client: TestClient, engine: FakeEngine
) -> None:
    ask(client)
    ask(client, "x" * (MAX_MODEL_LEN - 3))
    assert [spec.params.max_tokens for spec in engine.specs] == [16, 3]


def test_log_likelihoods_as_lm_eval_asks_for_them(client: TestClient, engine: FakeEngine) -> None:
    body = ask(client, [72, 105], max_tokens=1, logprobs=1, echo=True, seed=1234).json()
    Completion.model_validate(body)
    choice = body["choices"][0]
    assert choice["text"] == "Hih"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["H", "i", "h"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5]
    assert logprobs["top_logprobs"] == [None, {"i": -0.5}, {"h": -0.5}]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert engine.specs[0].params.prompt_logprobs == 1


def test_max_tokens_0_with_echo_answers_the_prompt_alone(client: TestClient) -> None:
    for stream in (False, True):
        response = ask(client, [72, 105], max_tokens=0, logprobs=0, echo=True, stream=stream)
        body = chunks_of(response.text)[0] if stream else response.json()
        choice = body["choices"][0]
        assert choice["text"] == "Hi"
        assert choice["logprobs"]["tokens"] == ["H", "i"]
        assert choice["finish_reason"] == "length"
    assert ask(client, [72], max_tokens=0, echo=True).json()["usage"]["completion_tokens"] == 0


def test_max_tokens_0_without_echo_is_refused(client: TestClient) -> None:
    assert ask(client, max_tokens=0).status_code == 400


def test_a_stream_with_echo_gives_the_text_and_logprobs_of_the_whole_answer(
    client: TestClient,
) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 2, "n": 2}
    whole = ask(client, **fields).json()["choices"]
    chunks = chunks_of(ask(client, **fields, stream=True).text)
    for index, choice in enumerate(whole):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for part in mine for value in part["logprobs"][name]] == values


def test_tokens_that_are_no_whole_characters_are_named_by_id(client: TestClient) -> None:
    body = ask(client, [0xF0, 65], logprobs=1, echo=True, max_tokens=1).json()
    assert body["choices"][0]["logprobs"]["tokens"] == ["token_id:240", "A", "h"]


def test_tokens_are_named_by_id_on_request(client: TestClient) -> None:
    body = ask(client, logprobs=0, max_tokens=2, return_tokens_as_token_ids=True).json()
    assert body["choices"][0]["logprobs"]["tokens"] == ["token_id:104", "token_id:101"]


def test_usage_comes_last_in_a_stream_that_asks_for_it(client: TestClient) -> None:
    options = {"include_usage": True}
    chunks = chunks_of(ask(client, stream=True, stream_options=options).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage_of(2, 5)


def test_best_of_up_to_n_is_accepted_and_more_is_refused(client: TestClient) -> None:
    assert ask(client, n=2, best_of=2).status_code == 200
    assert ask(client, n=2, best_of=3).json()["error"]["param"] == "best_of"


def test_a_suffix_is_refused(client: TestClient) -> None:
    assert ask(client, suffix="!").json()["error"]["code"] == "unsupported"


@pytest.mark.parametrize("prompt", [None, [], "", [[]], [256], [-1], [1.5], ["a", 3], {"a": 1}])
def test_a_bad_prompt_is_a_400_that_names_it(client: TestClient, prompt: Any) -> None:
    response = ask(client, prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_a_10_mb_prompt_is_refused_without_being_tokenised(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise AssertionError("tokenised")

    monkeypatch.setattr(engine.text_side, "encode", encode)
    error = ask(client, "x" * 10_000_000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert len(error["message"]) < 500


def test_a_long_prompt_is_tokenised_off_the_event_loop(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.text_side.longest_token = 100
    error = ask(client, "x" * 5000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "has 5000" in error["message"]


def test_a_batch_that_could_never_be_admitted_is_refused_at_once(
    client: TestClient, engine: FakeEngine
) -> None:
    response = ask(client, ["x"] * 600, n=2)
    assert response.status_code == 400
    assert "1200 sequences" in response.json()["error"]["message"]
    assert engine.specs == []


def test_an_unknown_model_is_never_the_base(client: TestClient, engine: FakeEngine) -> None:
    response = client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "model",
        "model_not_found",
    )
    assert engine.specs == []


def test_a_fixed_version_is_named_by_its_digest(client: TestClient, engine: FakeEngine) -> None:
    digest = engine.versions["tuned"].digest
    model = f"tuned@{digest[:19]}"
    response = client.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert response.headers["x-tsugiki-variant"] == f"tuned@{digest}"
    assert response.json()["model"] == model


def test_priority_salt_and_deadline_reach_the_engine(
    client: TestClient, engine: FakeEngine
) -> None:
    ask(client, priority=-2, cache_salt="tenant", timeout=2.5)
    ask(client, priority=None, cache_salt=None, timeout=None)
    asked, plain = engine.specs
    assert (asked.priority, asked.cache_salt, asked.timeout) == (-2, "tenant", 2.5)
    assert (plain.priority, plain.cache_salt, plain.timeout) == (0, None, None)
    for wrong in ({"priority": "high"}, {"cache_salt": ""}, {"timeout": 0}):
        response = ask(client, **wrong)
        assert (response.status_code, response.json()["error"]["param"]) == (400, *wrong)


def test_usage_says_what_came_from_the_prefix_cache(client: TestClient, engine: FakeEngine) -> None:
    async def half_cached(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        half = len(spec.prompt_token_ids) // 2
        yield GenerationEvent("a", (97,), cached_tokens=half, finish_reason=FinishReason.LENGTH)

    engine.script = half_cached
    prompts = ["abcd", "abcdef"]
    assert ask(client, prompts, n=2).json()["usage"] == usage_of(10, 4, cached=5)


def test_text_that_json_escapes_is_the_same_streamed_and_whole(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.answer = '"a\\\n\x00\x7f{}é'
    for options in ({}, {"return_token_ids": True}):
        whole = ask(client, **options).json()["choices"][0]
        chunks = [
            chunk["choices"][0] for chunk in chunks_of(ask(client, stream=True, **options).text)
        ]
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == engine.answer
        assert all(set(chunk) == set(whole) for chunk in chunks)


def test_an_answer_that_its_deadline_ended_says_so(client: TestClient, engine: FakeEngine) -> None:
    async def late(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        yield GenerationEvent("a", (97,))
        yield GenerationEvent("", (), finish_reason=FinishReason.TIMEOUT)

    engine.script = late
    whole = ask(client, timeout=1.5).json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("a", "timeout")
    assert chunks_of(ask(client, stream=True).text)[-1]["choices"][0]["finish_reason"] == "timeout"
