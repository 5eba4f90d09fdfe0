"""Choosing tokens: every backend against plain arithmetic and transformers' filters."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.operands import Draws
from tsugiki_kernels.sampling import cutoffs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAST_POINT = 1 - 2.0**-32
Setting = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p
SETTINGS: Sequence[Setting] = (
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 0.9, 0.0),
    (1.0, 7, 0.5, 0.0),
    (1.5, 2000, 0.95, 0.0),
    (1.0, 90, 1.0, 0.01),
    (2.0, 0, 1.0, 0.3),
)


def logits_of(rows: int, vocabulary: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, vocabulary, generator=generator)


def draws(settings: Sequence[Setting], points: Sequence[float], rows: Any = None) -> Draws:
    columns = zip(*settings, strict=True)
    dtypes = (torch.float32, torch.int64, torch.float32, torch.float32)
    return Draws(
        torch.arange(len(settings)) if rows is None else torch.tensor(rows),
        *(torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)),
        torch.tensor(points, dtype=torch.float64),
    )


def is_the_draw(row: Tensor, setting: Setting, point: float, token: int) -> bool:
    """Whether plain float64 arithmetic draws this token, up to what float32 rounds away."""
    temperature, top_k, top_p, min_p = setting
    weights = np.exp((row.double().numpy() - float(row.max())) / temperature)
    descending = np.sort(weights)[::-1]
    count = min(top_k, len(weights)) if top_k else len(weights)
    last = count - 1
    if top_p < 1:
        last = min(
            int(np.searchsorted(descending.cumsum(), top_p * descending[:count].sum())), last
        )
    cutoff = max(descending[last], min_p)
    for near in (1 - 1e-5, 1 + 1e-5):
        running = np.where(weights >= cutoff * near, weights, 0.0).cumsum()
        before = running[token - 1] if token else 0.0
        slack = 1e-5 * running[-1]
        if weights[token] >= cutoff * near and (
            before - slack <= point * running[-1] <= running[token] + slack
        ):
            return True
    return False


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    logits=st.builds(
        lambda dtype, *shape: logits_of(1, *shape).to(dtype),
        st.sampled_from(DTYPES),
        st.sampled_from([1, 2, 15, 17, 511, 513, 3000]),
        st.sampled_from([0.0, 0.1, 3.0, 40.0]),
        st.integers(0, 1000),
    ),
    setting=st.tuples(
        st.sampled_from([1e-5, 0.3, 1.0, 5.0]),
        st.sampled_from([0, 1, 2, 16, 400, 10_000]),
        st.floats(2.0**-20, 1.0, width=32),
        st.sampled_from([0.0, 1e-4, 0.3, 1.0]),
    ),
    point=st.floats(0.0, LAST_POINT),
)
def test_a_draw_is_what_plain_arithmetic_draws(
    kernels: KernelBackend, logits: Tensor, setting: Setting, point: float
) -> None:
    (token,) = kernels.sample(logits, draws([setting], [point])).tolist()
    assert is_the_draw(logits[0], setting, point, token)


@pytest.mark.parametrize("vocabulary", [50, 300, 5000])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_filters_together_keep_what_transformers_keeps(vocabulary: int, spread: float) -> None:
    kept = [(0, 0.9, 0.0), (7, 0.5, 0.0), (90, 1.0, 0.01), (2000, 0.95, 0.0), (0, 1.0, 0.3)]
    logits = logits_of(len(kept), vocabulary, spread, seed=1)
    weights = (logits - logits.amax(-1, keepdim=True)).exp().double()
    found = cutoffs(weights, draws([(1.0, *setting) for setting in kept], [0.0] * len(kept)))
    for row, weight, cutoff, (top_k, top_p, min_p) in zip(
        logits, weights, found, kept, strict=True
    ):
        expected = row[None].clone()
        for warper in (
            TopKLogitsWarper(top_k) if top_k else None,
            TopPLogitsWarper(top_p) if top_p < 1 else None,
            MinPLogitsWarper(min_p) if min_p else None,
        ):
            expected = warper(torch.zeros(1, 1).long(), expected) if warper else expected
        assert (weight >= cutoff).tolist() == torch.isfinite(expected[0]).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_greedy_takes_the_first_of_the_likeliest(
    kernels: KernelBackend, dtype: torch.dtype
) -> None:
    logits = logits_of(40, 1037).to(dtype)
    logits[:, 7] = logits[:, 900] = 100.0
    logits[1:, 7] = -100.0
    logits[2:, 1036] = 101.0
    found = kernels.sample(logits, draws([SETTINGS[0]] * 40, [0.5] * 40))
    assert found.tolist() == [7, 900] + [1036] * 38


def test_rows_are_chosen_by_number_from_a_wider_tensor(kernels: KernelBackend) -> None:
    wide = logits_of(6, 700)
    found = kernels.sample(wide[:, :600], draws([SETTINGS[0]] * 3, [0.0] * 3, rows=[5, 0, 5]))
    assert found.tolist() == wide[[5, 0, 5], :600].argmax(-1).tolist()


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_a_row_draws_the_same_token_alone_and_in_company(
    cpu_backend: CpuBackend, dtype: torch.dtype
) -> None:
    logits = logits_of(7 * 30, 3001).to(dtype)
    chosen, points = SETTINGS * 30, np.random.default_rng(0).random(7 * 30).tolist()
    together = cpu_backend.sample(logits, draws(chosen, points)).tolist()
    alone = [
        cpu_backend.sample(logits[i : i + 1], draws([chosen[i]], [points[i]])).item()
        for i in range(len(logits))
    ]
    assert together == alone


@pytest.mark.parametrize("vocabulary", [1, 255, 600])
@pytest.mark.parametrize("point", [0.0, 0.5, LAST_POINT])
def test_no_number_draws_a_token_without_probability(
    kernels: KernelBackend, vocabulary: int, point: float
) -> None:
    logits = logits_of(len(SETTINGS), vocabulary)
    logits[:, ::3] = -torch.inf
    logits[:, -1] = -torch.inf
    logits[:, vocabulary // 2] = -60.0
    tokens = kernels.sample(logits, draws(SETTINGS, [point] * len(SETTINGS)))
    assert logits.gather(1, tokens[:, None]).isfinite().all()


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[2]])
@pytest.mark.parametrize("place", [0, 17, 512, 599])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_logits_give_no_token_in_their_row_only(
    kernels: KernelBackend, bad: float, place: int, setting: Setting
) -> None:
    logits = logits_of(4, 600)
    logits[1, place] = bad
    logits[2] = -torch.inf
    found = kernels.sample(logits, draws([setting] * 4, [0.5] * 4)).tolist()
    assert [token == -1 for token in found] == [False, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("width", [0, 1, 20, 37])
def test_logprobs_are_of_the_softmax_and_ranks_count_what_is_likelier(
    kernels: KernelBackend, width: int, dtype: torch.dtype
) -> None:
    logits = logits_of(9, 1037).to(dtype)
    logits[:, 1000:] = -torch.inf
    rows, tokens = torch.tensor([8, 0, 4, 4]), torch.tensor([5, 999, 0, 1036])
    found = kernels.logprobs(logits, rows, tokens, width)
    expected = logits[rows].double().log_softmax(-1)
    chosen = expected.gather(1, tokens[:, None])
    torch.testing.assert_close(found.logprobs.double(), chosen[:, 0], atol=1e-5, rtol=0)
    assert found.ranks.tolist() == (1 + (expected > chosen).sum(-1)).tolist()
    best = expected.sort(descending=True, stable=True)
    torch.testing.assert_close(
        found.top_logprobs.double(), best.values[:, :width], atol=1e-5, rtol=0
    )
    assert torch.equal(found.top_ids, best.indices[:, :width])


@pytest.mark.parametrize(
    ("logits", "rows", "tokens", "width", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.float64), [0], [0], 1, "logits"),
        (torch.zeros(4, 2).T, [0], [0], 1, "logits"),
        (torch.zeros(2, 4), [2], [0], 1, "rows"),
        (torch.zeros(2, 4), [-1], [0], 1, "rows"),
        (torch.zeros(2, 4), [0], [4], 1, "token_ids"),
        (torch.zeros(2, 4), [0], [0, 1], 1, "token_ids"),
        (torch.zeros(2, 4), [0], [0], 5, "width"),
    ],
)
def test_what_would_be_read_outside_the_logits_is_refused(
    kernels: KernelBackend,
    logits: Tensor,
    rows: list[int],
    tokens: list[int],
    width: int,
    message: str,
) -> None:
    with pytest.raises(BadArgument, match=message):
        kernels.logprobs(logits, torch.tensor(rows), torch.tensor(tokens), width)


def test_columns_of_draws_must_have_their_dtype_and_length(kernels: KernelBackend) -> None:
    sound = draws([SETTINGS[1]], [0.5])
    wrong = Draws(**{n: getattr(sound, n) for n in sound.__slots__} | {"top_k": torch.zeros(1)})
    with pytest.raises(BadArgument, match="top_k"):
        kernels.sample(torch.zeros(1, 4), wrong)
