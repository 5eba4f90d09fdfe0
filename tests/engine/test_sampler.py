"""Sampling: filters against transformers' processors, seeds, penalties, log-probabilities."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tsugiki.engine.logits import process
from tsugiki.engine.logprobs import token_logprobs
from tsugiki.engine.request import Request
from tsugiki.engine.sampler import Sampled, Sampler, Wanted, uniforms
from tsugiki_kernels.reference import ReferenceBackend

RequestFactory = Callable[..., Request]
VOCABULARY = 300


def logits_of(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[Sampled]:
    """The next token of each request from its row."""
    wanted = [Wanted(r, len(r.output_token_ids), row) for row, r in enumerate(requests)]
    return Sampler(ReferenceBackend()).sample(logits, wanted)


def reachable(logits: torch.Tensor, request: Request, draws: int = 3000) -> set[int]:
    """Every token that a request is seen to sample from one row of logits."""
    rows = logits.expand(draws, -1)
    copies = []
    for seed in range(draws):
        copy = Request(**{name: getattr(request, name) for name in request.__slots__})
        copy.seed = seed
        copies.append(copy)
    return {one.token_id for one in sample(rows, copies)}


def test_temperature_zero_takes_the_likeliest(make_request: RequestFactory) -> None:
    logits = logits_of(4)
    requests = [make_request(temperature=0.0) for _ in range(4)]
    assert [s.token_id for s in sample(logits, requests)] == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("params", "warper"),
    [
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.7}, TopPLogitsWarper(0.7)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
    ],
)
def test_exactly_the_tokens_that_transformers_keeps_can_come(
    make_request: RequestFactory, params: dict[str, float], warper: TopKLogitsWarper
) -> None:
    logits = logits_of(1, seed=3)
    kept = torch.isfinite(warper(torch.zeros(1, 1, dtype=torch.long), logits.clone()))[0]
    likely = kept & (logits.masked_fill(~kept, -torch.inf).softmax(-1)[0] > 0.005)
    seen = reachable(logits, make_request(temperature=1.0, **params))
    assert seen <= set(kept.nonzero()[:, 0].tolist())
    assert seen >= set(likely.nonzero()[:, 0].tolist())


def test_frequencies_follow_the_distribution(make_request: RequestFactory) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]])
    draws = 20_000
    requests = [make_request(temperature=0.5, seed=i) for i in range(draws)]
    tokens = [s.token_id for s in sample(logits.expand(draws, -1), requests)]
    found = np.bincount(tokens, minlength=4) / draws
    expected = (logits[0] / 0.5).softmax(-1).numpy()
    assert found[3] == 0
    assert np.abs(found - expected).max() < 0.015


def test_a_seed_gives_the_same_token_alone_and_in_any_company(
    make_request: RequestFactory,
) -> None:
    logits = logits_of(6, seed=5)
    params = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.9, "seed": 11},
        {"temperature": 2.0, "seed": 12},
        {"temperature": 0.7, "top_k": 20, "seed": 13, "logprobs": 2},
        {"temperature": 1.0, "repetition_penalty": 1.3, "seed": 14},
        {"temperature": 1.5, "min_p": 0.05, "seed": -(2**70)},
    ]
    requests = [make_request(output=range(i), **p) for i, p in enumerate(params)]
    together = sample(logits, requests)
    alone = [sample(logits[i : i + 1], [r])[0] for i, r in enumerate(requests)]
    assert together == alone


def test_the_random_numbers_are_pinned() -> None:
    """They are part of what `seed` promises: a change here changes every seeded answer."""
    numbers = uniforms([0, 0, 1, 2**64 - 1], [0, 1, 0, 7])
    assert numbers.tolist() == pytest.approx(uniforms([0, 0, 1, -1], [0, 1, 0, 7]).tolist())
    assert [round(n, 6) for n in numbers] == [0.652448, 0.701212, 0.36819, 0.723858]


def test_random_numbers_are_spread_over_seeds_and_positions() -> None:
    by_seed = uniforms(list(range(10_000)), [0] * 10_000)
    by_position = uniforms([42] * 10_000, list(range(10_000)))
    for numbers in (by_seed, by_position):
        counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
        assert abs(counts - 500).max() < 120
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05


def test_repetition_penalty_is_transformers(make_request: RequestFactory) -> None:
    logits = logits_of(1)
    request = make_request(prompt=[3, 4, 5], output=[5, 9], repetition_penalty=1.7)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.tensor([[3, 4, 5, 5, 9]]), logits.clone()
    )
    process(logits, [request])
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_count_generated_tokens_only(make_request: RequestFactory) -> None:
    logits = torch.zeros(2, 12)
    request = make_request(
        prompt=[1, 2], output=[4, 4, 5], presence_penalty=0.5, frequency_penalty=0.25
    )
    process(logits, [make_request(), request])
    expected = torch.zeros(2, 12)
    expected[1, 4], expected[1, 5] = -1.0, -0.75
    torch.testing.assert_close(logits, expected)


def test_logit_bias_adds_and_min_tokens_forbids_stopping(make_request: RequestFactory) -> None:
    logits = torch.zeros(2, 12)
    params = {"min_tokens": 2, "stop_token_ids": frozenset({7, 99}), "logit_bias": ((3, 5.0),)}
    process(logits, [make_request(output=[1], **params), make_request(output=[1, 2], **params)])
    assert logits[:, 3].tolist() == [5.0, 5.0]
    assert logits[:, 7].tolist() == [float("-inf"), 0.0]


def test_logprobs_are_of_the_models_own_logits(make_request: RequestFactory) -> None:
    logits = logits_of(2)
    before = logits.clone()
    bias = ((8, 100.0),)
    requests = [
        make_request(temperature=0.0, logprobs=3, logit_bias=bias),
        make_request(temperature=0.0),
    ]
    biased, plain = sample(logits, requests)
    expected = before[0].log_softmax(-1)
    assert plain.logprobs is None
    assert biased.logprobs is not None
    assert biased.token_id == 8
    assert biased.logprobs.logprob == pytest.approx(expected[8].item(), abs=1e-5)
    assert biased.logprobs.rank == 1 + int((expected > expected[8]).sum())
    assert [t for t, _ in biased.logprobs.top] == expected.topk(3).indices.tolist()
    torch.testing.assert_close(logits, before)


def test_no_alternatives_asked_for_means_none_given() -> None:
    (one,) = token_logprobs(ReferenceBackend(), logits_of(1), [0], [5], [0])
    assert one.top == ()
    assert one.token_id == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unusable_logits_are_reported_for_their_row_only(
    make_request: RequestFactory, bad: float
) -> None:
    logits = logits_of(3)
    logits[1, 17] = bad
    requests = [make_request(temperature=t, seed=1) for t in (0.0, 1.0, 1.0)]
    assert [s.finite for s in sample(logits, requests)] == [True, False, True]


def test_a_row_of_minus_infinity_is_unusable(make_request: RequestFactory) -> None:
    logits = torch.full((1, 5), float("-inf"))
    assert not sample(logits, [make_request()])[0].finite
