"""Tensor trains: the error bound of TT-SVD, exactness, and every order of meeting the cores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsugiki.codecs.saten import CODEC
from tsugiki.codecs.saten_train import (
    Modes,
    balanced,
    best_modes,
    candidates,
    decompose,
    folded,
    largest_ranks,
    low_rank_modes,
    parameters_of,
    stages,
    unfolded,
    within,
)
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import TensorTrainDelta
from tsugiki_kernels.formulas import train_product

SHAPE = (24, 36)
FORMS: dict[str, Modes] = {
    "low rank": low_rank_modes(SHAPE),
    "matrix": ((6, 6), (4, 6)),
    "matrix of three": ((4, 4), (3, 3), (2, 3)),
    "vector": ((6, 1), (4, 1), (1, 6), (1, 6)),
    "alternating": ((6, 1), (1, 6), (4, 1), (1, 6)),
}


def matrix(seed: int, shape: tuple[int, int] = SHAPE) -> Tensor:
    """Random, with singular values that fall."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    return (u * 0.8 ** torch.arange(min(shape))) @ v


modes_of_shape = st.sampled_from(sorted(FORMS))


@given(form=modes_of_shape, seed=st.integers(0, 99), bound=st.floats(0.01, 0.9))
@settings(max_examples=60)
def test_the_error_stays_within_the_bound_that_was_asked_for(
    form: str, seed: int, bound: float
) -> None:
    whole = matrix(seed)
    train = decompose(whole, FORMS[form], relative_error=bound)
    error = float((train.dense() - whole).norm() / whole.norm())
    assert error <= bound + 1e-5
    assert all(r <= m for r, m in zip(train.ranks, largest_ranks(FORMS[form]), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_train_of_full_rank_is_the_matrix(form: str) -> None:
    whole = matrix(1)
    assert torch.allclose(decompose(whole, FORMS[form]).dense(), whole, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_lower_rank_keeps_to_it_and_counts_its_parameters(form: str) -> None:
    train = decompose(matrix(2), FORMS[form], rank=3)
    assert max(train.ranks) <= 3
    assert train.modes == FORMS[form]
    assert train.parameters == parameters_of(train.modes, train.ranks)
    norms = [float(core.abs().max()) for core in train.cores]
    assert max(norms) < 100 * min(norms)  # no core carries all of the scale


def test_two_factors_of_a_low_rank_are_the_best_there_are() -> None:
    whole = matrix(3)
    singular = torch.linalg.svdvals(whole)
    found = within(whole, low_rank_modes(SHAPE), 4 * sum(SHAPE))
    error = float((found.dense() - whole).norm())
    assert error == pytest.approx(float(singular[4:].norm()), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_digits_of_rows_and_columns_are_put_together_and_apart_again(form: str) -> None:
    whole = torch.arange(24.0 * 36).view(SHAPE)
    assert torch.equal(folded(unfolded(whole, FORMS[form]), FORMS[form]), whole)


def test_the_first_core_takes_the_most_significant_digits() -> None:
    flat = unfolded(torch.arange(24.0 * 36).view(SHAPE), FORMS["matrix"]).view(6, 6, 4, 6)
    row, column = 2 * 4 + 3, 5 * 6 + 1
    assert flat[2, 5, 3, 1] == row * 36 + column


@pytest.mark.parametrize("form", FORMS)
def test_a_product_through_the_cores_is_the_product_with_the_matrix(form: str) -> None:
    train = decompose(matrix(4), FORMS[form], rank=5)
    met, cores = stages(train)
    none = torch.empty(0)
    delta = TensorTrainDelta(SHAPE, met, cores, 24, 0.0, 1.0, none, none, none, none, None)
    x = torch.randn(7, 36, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(train_product(x, delta), x @ train.dense().T, atol=1e-5)


def test_the_cheaper_end_is_met_first() -> None:
    wide = decompose(matrix(5, (4, 36)), ((2, 6), (2, 6)), rank=4)
    tall = decompose(matrix(5, (36, 4)), ((6, 2), (6, 2)), rank=4)
    costs = [sum(stage.cost for stage in stages(train)[0]) for train in (wide, tall)]
    assert costs[0] == costs[1] == 4 * (2 * 6 * 6 + 2 * 2 * 6)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_looked_up_without_the_rest(form: str) -> None:
    train = decompose(matrix(6), FORMS[form], rank=4)
    ids = torch.tensor([23, 0, 7, 7])
    assert torch.allclose(train.rows(ids), train.dense()[ids], atol=1e-6)
    assert train.rows(ids[:0]).shape == (0, 36)


@pytest.mark.parametrize(("length", "count"), [(576, 2), (1536, 3), (49152, 3), (17, 2), (1, 3)])
def test_factors_multiply_to_the_length(length: int, count: int) -> None:
    found = balanced(length, count)
    assert math.prod(found) == length
    assert list(found) == sorted(found, reverse=True)


def test_the_search_tries_every_form_and_puts_the_best_first() -> None:
    kronecker = torch.kron(matrix(7, (6, 6)), matrix(8, (4, 6)))
    found = best_modes(kronecker, 80)
    assert set(found) == set(candidates(SHAPE))
    assert list(found.values()) == sorted(found.values())
    assert next(iter(found)) == "matrix 6x6 4x6"
    assert found["matrix 6x6 4x6"] < 1e-5 < found["low rank"]


@pytest.mark.parametrize("modes", ["24x36", "5x6 4x6", " ".join(["1x1"] * 9)])
def test_modes_that_are_no_cores_of_the_matrix_are_refused(modes: str) -> None:
    options = {"modes": modes, "rank": 2}
    with pytest.raises(CompressionRefused, match=r"modes '.*' are not 2 to 8 pairs of factors"):
        CODEC.compress(torch.zeros(SHAPE), torch.ones(SHAPE), None, options)
