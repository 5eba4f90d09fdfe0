"""Clients that we did not write: the OpenAI SDK, lm-eval, schemathesis."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch


@pytest.fixture
def sdk(server: str) -> Iterator[openai.OpenAI]:
    """The SDK as a user would set it up."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key="unused") as client:
        yield client


def test_openai_lists_the_models(sdk: openai.OpenAI, base_id: str) -> None:
    ids = {model.id for model in sdk.models.list()}
    assert {base_id, "deltadq", "lora", "bitdelta"} <= ids
    assert sdk.models.retrieve("lora").id == "lora"


def test_openai_chat_with_logprobs_n_and_usage(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="deltadq",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_completion_tokens=8,
        n=2,
        seed=5,
        logprobs=True,
        top_logprobs=3,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)


def test_openai_stream_gives_the_text_of_the_plain_call(sdk: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {
        "model": "bitdelta",
        "messages": [{"role": "user", "content": "A server"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    plain = sdk.chat.completions.create(**arguments).choices[0].message.content
    chunks = list(
        sdk.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_openai_stop_string_ends_the_text_before_it(sdk: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "lora", "prompt": "The quick brown", "temperature": 0}
    full = sdk.completions.create(**arguments, max_tokens=24).choices[0].text
    stop = full[len(full) // 2 : len(full) // 2 + 2]
    cut = sdk.completions.create(**arguments, max_tokens=24, stop=[stop]).choices[0]
    assert cut.text == full[: full.index(stop)]
    assert cut.finish_reason == "stop"


def test_openai_unknown_model_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.completions.create(model="nobody", prompt="x")
    assert caught.value.code == "model_not_found"


LINES = (
    ("The capital of France is", " Paris"),
    ("Sam has 12 apples and buys", " 30 more."),
    ("My card has not", " arrived yet"),
    ("The quick brown fox", " jumps over the lazy dog"),
)


def test_lm_eval_loglikelihoods_equal_transformers(
    server: str, tiny_base: Path, checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    """lm-eval's `local-completions` against transformers on the decompressed variant."""
    script = tmp_path / "score.py"
    script.write_text(
        "import json, sys\n"
        "from lm_eval.api.instance import Instance\n"
        "from lm_eval.models.openai_completions import LocalCompletionsAPI\n"
        "url, tokenizer, lines = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "lm = LocalCompletionsAPI(model='deltadq', base_url=url + '/v1/completions',\n"
        "    tokenizer=tokenizer, tokenizer_backend='huggingface', batch_size=2,\n"
        "    max_length=256)\n"
        "work = [Instance('loglikelihood', {}, tuple(x), i) for i, x in enumerate(lines)]\n"
        "print(json.dumps([list(map(float, x)) for x in lm.loglikelihood(work)]))\n"
    )
    command = [sys.executable, str(script), server, str(tiny_base), json.dumps(LINES)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    scored = json.loads(run.stdout.splitlines()[-1])
    expected = [loglikelihood(checkpoints["deltadq"], tiny_base, *line) for line in LINES]
    assert [score for score, _ in scored] == pytest.approx(expected, abs=1e-2)


@torch.inference_mode()
def loglikelihood(model: Any, tokenizer_path: Path, context: str, continuation: str) -> float:
    """Sum of log-probabilities of the continuation's tokens, as lm-eval splits them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    whole = tokenizer(context + continuation).input_ids
    start = len(tokenizer(context).input_ids)
    logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, whole[i]]) for i in range(start, len(whole)))


def test_schemathesis_finds_no_server_error(server: str, tmp_path: Path) -> None:
    """Property-based requests from /openapi.json: never a 5xx, always the documented shape."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server}/openapi.json",
        "--checks=not_a_server_error,response_schema_conformance",
        "--exclude-method=DELETE",
        "--exclude-path=/v1/variants/events",  # a stream without end
        "--max-examples=8",
        "--seed=1",
        "--generation-deterministic",
        "--request-timeout=30",
        "--workers=1",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-4000:]
    assert httpx.get(f"{server}/health").status_code == 200
