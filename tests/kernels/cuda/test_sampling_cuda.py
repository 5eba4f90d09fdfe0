"""Choosing tokens with the GPU's kernels, against plain arithmetic."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.resident import DTYPES
from tests.kernels.test_sampling import LAST_POINT, SETTINGS, draws, is_the_draw, logits_of
from tsugiki_kernels.cuda import sampling as operation
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import Draws
from tsugiki_kernels.reference import ReferenceBackend

GREEDY = SETTINGS[0]


def sample(launcher: Launcher, logits: Tensor, wanted: Draws) -> list[int]:
    there = Draws(*(getattr(wanted, f.name).to(launcher.device) for f in fields(wanted)))
    found: list[int] = operation.sample(launcher, logits.to(launcher.device), there).tolist()
    return found


@DTYPES
@pytest.mark.parametrize("vocabulary", [1, 31, 513, 3000])
@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 40.0])
def test_a_draw_is_what_plain_arithmetic_draws(
    launcher: Launcher, dtype: torch.dtype, vocabulary: int, spread: float
) -> None:
    points = np.random.default_rng(vocabulary).random(len(SETTINGS)).tolist()
    logits = logits_of(len(SETTINGS), vocabulary, spread).to(dtype)
    tokens = sample(launcher, logits, draws(SETTINGS, points))
    for row, setting, point, token in zip(logits, SETTINGS, points, tokens, strict=True):
        if setting == GREEDY:
            assert token == row.argmax()
        else:
            assert is_the_draw(row, setting, point, token)


@DTYPES
def test_ties_beyond_what_candidates_hold_stay_or_go_together(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    logits = torch.zeros(3, 2000, dtype=dtype)
    logits[:, 700:] = -2.0
    settings = [(1.0, 5, 1.0, 0.0), (1.0, 701, 1.0, 0.0), (1.0, 0, 0.3, 0.0)]
    assert sample(launcher, logits, draws(settings, [LAST_POINT] * 3)) == [699, 1999, 699]


@DTYPES
def test_a_row_draws_the_same_token_alone_and_in_company(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    logits = logits_of(len(SETTINGS), 1501).to(dtype)
    points = np.random.default_rng(0).random(len(SETTINGS)).tolist()
    together = sample(launcher, logits, draws(SETTINGS, points))
    for i, (setting, point) in enumerate(zip(SETTINGS, points, strict=True)):
        assert sample(launcher, logits[i : i + 1], draws([setting], [point])) == [together[i]]


@DTYPES
def test_greedy_takes_the_first_of_the_likeliest(launcher: Launcher, dtype: torch.dtype) -> None:
    logits = logits_of(4, 1037).to(dtype)
    logits[:, 7] = logits[:, 900] = 100.0
    logits[1:, 7] = -100.0
    logits[2:, 1036] = 101.0
    logits[3] = torch.tensor([-0.0, 0.0]).repeat(519)[:1037]  # zeros of both signs are equal
    assert sample(launcher, logits, draws([GREEDY] * 4, [0.5] * 4)) == [7, 900, 1036, 0]


def test_rows_are_chosen_by_number_from_a_wider_tensor(launcher: Launcher) -> None:
    wide = logits_of(6, 700)
    found = sample(launcher, wide[:, :600], draws([GREEDY] * 3, [0.0] * 3, rows=[5, 0, 5]))
    assert found == wide[[5, 0, 5], :600].argmax(-1).tolist()


@pytest.mark.parametrize("point", [0.0, 0.5, LAST_POINT])
def test_no_number_draws_a_token_without_probability(launcher: Launcher, point: float) -> None:
    logits = logits_of(len(SETTINGS), 600)
    logits[:, ::3] = -torch.inf
    logits[:, -1] = -torch.inf
    logits[:, 300] = -60.0
    tokens = sample(launcher, logits, draws(SETTINGS, [point] * len(SETTINGS)))
    assert logits.gather(1, torch.tensor(tokens)[:, None]).isfinite().all()


@pytest.mark.parametrize("setting", [GREEDY, SETTINGS[2]])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
def test_unusable_logits_give_no_token_in_their_row_only(
    launcher: Launcher, bad: float, setting: tuple[float, int, float, float]
) -> None:
    logits = logits_of(4, 600)
    logits[1, 517] = bad
    logits[2] = -torch.inf
    found = sample(launcher, logits, draws([setting] * 4, [0.5] * 4))
    assert [token == -1 for token in found] == [False, True, True, False]


@DTYPES
@pytest.mark.parametrize("width", [0, 1, 7])
def test_logprobs_are_the_references(launcher: Launcher, width: int, dtype: torch.dtype) -> None:
    logits = logits_of(9, 1037).to(dtype)
    logits[:, 1000:] = -torch.inf
    logits[4, :20] = 9.0  # equals: the first comes first
    rows, tokens = torch.tensor([8, 0, 4, 4]), torch.tensor([5, 999, 19, 1036])
    place = launcher.device
    found = operation.logprobs(launcher, logits.to(place), rows.to(place), tokens.to(place), width)
    expected = ReferenceBackend().logprobs(logits, rows, tokens, width)
    torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, atol=1e-5, rtol=0)
    assert torch.equal(found.ranks.cpu(), expected.ranks)
    torch.testing.assert_close(found.top_logprobs.cpu(), expected.top_logprobs, atol=1e-5, rtol=0)
    assert torch.equal(found.top_ids.cpu(), expected.top_ids)


def test_refusals_name_the_argument(launcher: Launcher) -> None:
    with pytest.raises(BadArgument, match="logits: expected a vocabulary of 1 to 262144"):
        sample(launcher, torch.zeros(1, 2**18 + 1), draws([GREEDY], [0.5]))
    with pytest.raises(BadArgument, match="rows"):
        sample(launcher, torch.zeros(1, 4), draws([GREEDY], [0.5], rows=[1]))
