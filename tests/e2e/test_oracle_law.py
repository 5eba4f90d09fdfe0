"""Served tokens and log-probabilities are those of plain transformers on decompressed weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
import torch

from tests.served import answers

PROMPTS = [[0, *range(20 + 7 * i, 60 + 9 * i)] for i in range(4)]
TOKENS = 24
TOLERANCE = 1e-3

ServeHere = Callable[..., AbstractContextManager[str]]
Truths = dict[str, list[tuple[list[float], list[int]]]]


@torch.inference_mode()
def truth(model: Any, prompt: list[int]) -> tuple[list[float], list[int]]:
    """Log-probabilities of prompt tokens 1.. and the greedy continuation."""
    ids = torch.tensor([prompt])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    greedy = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        eos_token_id=None,
        do_sample=False,
        pad_token_id=1,
    )
    return logprobs.tolist(), greedy[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def truths(checkpoints: dict[str, Any]) -> Truths:
    """What transformers says of every prompt, by model."""
    return {
        name: [truth(model, prompt) for prompt in PROMPTS] for name, model in checkpoints.items()
    }


def check(url: str, truths: Truths) -> None:
    """Compare every answer with transformers."""
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    base = next(m["id"] for m in listed if m["parent"] is None)
    choices = iter(answers(url, [name or base for name in truths], PROMPTS, TOKENS))
    for expected in truths.values():
        for prompt, (logprobs, greedy) in zip(PROMPTS, expected, strict=True):
            choice = next(choices)
            served = choice["logprobs"]["token_logprobs"][1 : len(prompt)]
            assert served == pytest.approx(logprobs, abs=TOLERANCE)
            assert choice["token_ids"] == greedy


def preemptions(url: str) -> float:
    """The counter in /metrics."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith("tsugiki_preemptions_total")).split()[-1])


def test_a_mixed_batch_of_all_codecs_equals_transformers(server: str, truths: Truths) -> None:
    check(server, truths)


def test_chunked_prefill_changes_nothing(serve_here: ServeHere, truths: Truths) -> None:
    with serve_here(max_num_batched_tokens=17, max_num_seqs=16) as url:
        check(url, truths)


def test_forced_preemption_changes_nothing(serve_here: ServeHere, truths: Truths) -> None:
    # 2 layers x (K, V) x 2 heads x 16 values x 4 bytes = 512 bytes a token: room for 384 tokens,
    # while 20 requests of 60 to 90 tokens each want about 1,600
    with serve_here(kv_memory=192 * 2**10, max_model_len=256) as url:
        check(url, truths)
        assert preemptions(url) > 0


@pytest.mark.compiler
def test_reference_kernels_serve_the_same(serve_here: ServeHere, truths: Truths) -> None:
    with serve_here(kernels="reference") as url:
        check(url, truths)
