"""The rotation and the codebooks: orthogonal, exact nearest words, golden words."""

import pytest
import torch
from torch import Tensor

from tsugiki.compress_base.e8p import encode, nearest, nearest_in_ball
from tsugiki_kernels.hadamard import rotation_of, signs
from tsugiki_kernels.lattice import e8_ball, e8p, e8p_magnitudes


def every_code() -> Tensor:
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# SmolLM2-135M's widths, powers of two, both of Paley's constructions, and one cut into blocks
@pytest.mark.parametrize("width", [576, 1536, 192, 64, 8, 24, 40, 56, 344])
def test_a_rotation_is_orthogonal_and_undone(width: int) -> None:
    rotation = rotation_of(width)
    matrix = rotation.apply(torch.eye(width))
    assert torch.allclose(matrix @ matrix.T, torch.eye(width), atol=1e-5)
    assert torch.allclose(rotation.undo(matrix), torch.eye(width), atol=1e-5)
    assert float(matrix.abs().max()) < 1.001 / rotation.block**0.5


@pytest.mark.parametrize(
    ("width", "blocks", "order"),
    [(4096, 1, 1), (576, 1, 36), (1536, 1, 12), (14336, 1, 28), (11008, 43, 1)],
)
def test_the_matrix_of_a_width_is_fixed(width: int, blocks: int, order: int) -> None:
    found = rotation_of(width)
    assert (found.blocks, found.order) == (blocks, order)
    assert found.blocks * found.block == width


def test_the_signs_of_a_width_are_fixed() -> None:
    negative = "".join("1" if sign < 0 else "0" for sign in signs(576)[:32].tolist())
    assert negative == "11011111011001100010000100101111"
    assert torch.equal(signs(576).abs(), torch.ones(576))


def test_the_words_of_the_codebook_are_those_of_the_lattice() -> None:
    words = e8p(every_code())
    assert len(torch.unique(words, dim=0)) == 1 << 16
    shift = torch.where(every_code() < 0, -0.25, 0.25)[:, None]
    points = words - shift
    assert torch.equal(points.abs() % 1, torch.full_like(points, 0.5))
    assert not bool((points.sum(1) % 2).any())
    norms = e8p_magnitudes().square().sum(1)
    assert [int((norms <= 10).sum()), int((norms == 12).sum())] == [227, 29]


def test_golden_words() -> None:
    codes = torch.tensor([0, 0x0180, -1, 0x7FE3, -0x8000], dtype=torch.int16)
    expected = torch.tensor(
        [
            [0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75],
            [-0.25, 1.75, 1.75, 0.75, 0.75, 1.75, 0.75, 0.75],
            [-1.75, -1.75, -1.75, -1.75, -1.75, -0.75, -0.75, 0.25],
            [-0.25, -0.25, -0.25, -1.25, -1.25, -1.25, -1.25, 1.75],
            [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25],
        ]
    )
    assert torch.equal(e8p(codes), expected)
    assert e8_ball()[[0, 1, 112, 113, 255]].tolist() == [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0],
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0],
    ]


def test_the_nearest_word_is_found_exactly() -> None:
    """Near the origin, around the edge of the ball, and far beyond it."""
    words = e8p(every_code())
    groups = torch.cat([s * random(150, 8, seed=1) for s in (0.3, 1.0, 1.4, 2.0, 4.0)])
    least = torch.cdist(groups.double(), words.double()).amin(1)
    found = (groups - e8p(nearest(groups))).double().norm(dim=1)
    assert torch.allclose(found, least, atol=1e-5)
    assert torch.equal(nearest(words[::257]), every_code()[::257])


def test_the_nearest_point_of_the_small_ball_is_found() -> None:
    groups = random(200, 8, seed=2)
    found = (groups - e8_ball()[nearest_in_ball(groups).long()]).norm(dim=1)
    assert torch.allclose(found, torch.cdist(groups, e8_ball()).amin(1), atol=1e-5)


@pytest.mark.parametrize(("bits", "least", "most"), [(2, 0.088, 0.095), (3, 0.028, 0.032)])
def test_gaussian_values_lose_what_the_lattice_promises(
    bits: int, least: float, most: float
) -> None:
    values = random(4000, 8, seed=3)
    error = float((encode(values, bits).values - values).square().mean())
    assert least < error < most


def test_two_stages_are_decoded_with_the_scale_that_they_were_encoded_with() -> None:
    values = random(2000, 8, seed=4)
    errors = [float((encode(values, b).values - values).square().mean()) for b in (2, 3, 4)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
