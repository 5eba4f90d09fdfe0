"""A linear taken apart: feedback beats rounding, factors beat none, the best iterate is kept."""

import pytest
import torch
from torch import Tensor

from tsugiki.codecs.factors import Factors, factor_parts, read, rounded, stored
from tsugiki.codecs.low_rank_fit import fit, regression
from tsugiki.compress_base.caldera import Metric, Settings, decompose
from tsugiki.compress_base.ldlq import block_factor, sweep
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.lattice import decoded, dense


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram(width: int, seed: int = 1) -> Tensor:
    """Of correlated inputs, a few of them large."""
    mix = random(width, width, seed=seed) / width**0.5
    x = (random(4 * width, width, seed=seed + 1) @ mix) * torch.logspace(-1, 1, width)
    return x.T @ x / len(x)


def cost(error: Tensor, metric: Metric) -> float:
    return metric.cost(error) ** 0.5


def test_the_block_factor_rebuilds_the_gram_matrix() -> None:
    matrix = gram(32) + torch.eye(32)
    lower = block_factor(matrix).double()
    diagonal = torch.linalg.solve_triangular(
        lower, torch.linalg.solve_triangular(lower, matrix.double(), upper=False).T, upper=False
    )
    blocks = torch.block_diag(*[torch.ones(8, 8)] * 4).bool()
    assert float(diagonal[~blocks].abs().max()) < 1e-4 * float(diagonal.abs().max())
    assert torch.allclose(lower.float()[:8, :8], torch.eye(8), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_costs_less_output_than_rounding_each_group_alone(bits: int) -> None:
    weight, metric = random(48, 96, seed=3), Metric(gram(96), damping=0.01)
    turned = metric.rotation.apply(weight)
    costs = []
    for factor in (metric.factor, torch.eye(96)):
        found = sweep(turned, factor, bits)
        costs.append(cost(weight - metric.rotation.undo(found.values), metric))
    assert costs[0] < 0.8 * costs[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_stand_for_the_values_that_the_sweep_saw(bits: int) -> None:
    weight = random(24, 64, seed=4)
    found = decompose(weight, Metric(gram(64)), Settings(bits, rank=0))
    assert found.factors is None
    values = sweep(found.backbone.rotation.apply(weight), Metric(gram(64)).factor, bits).values
    assert torch.allclose(decoded(found.backbone), values, atol=1e-5)
    assert found.backbone.nbytes == 24 * 64 * bits // 8 + 24 * 2


@pytest.mark.parametrize("shape", [(24, 64), (64, 24)])
def test_regression_is_the_best_that_its_rank_can_do(shape: tuple[int, int]) -> None:
    target, metric = random(*shape, seed=5), Metric(gram(shape[1]), damping=0.01)
    found = regression(target, metric.gram, 6)
    root = torch.linalg.cholesky(metric.gram)
    left_out = torch.linalg.svdvals(target @ root)[6:]
    assert cost(target - found.product(), metric) == pytest.approx(float(left_out.norm()), rel=1e-3)


def test_more_bits_of_the_factors_leave_less() -> None:
    target, metric = random(40, 64, seed=6), Metric(gram(64))
    best = cost(target - regression(target, metric.gram, 8).product(), metric)
    errors = [fit(target, metric.gram, 8, bits).error ** 0.5 for bits in (16, 8, 4)]
    assert best * 0.999 < errors[0] < errors[1] < errors[2] < 1.1 * best
    found = fit(target, metric.gram, 8, 4)
    expected = cost(target - found.factors.product(), metric)
    assert found.error**0.5 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_stored_factors_are_the_rounded_ones(bits: int) -> None:
    factors = Factors(random(40, 5, seed=7), random(5, 24, seed=8))
    tensors = stored(factors, bits)
    expected = factor_parts((40, 24), 5, bits)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == dict(expected)
    found = read(tensors, (40, 24), bits)
    assert torch.equal(found.right, rounded(factors.right, bits))
    assert torch.allclose(found.left, rounded(factors.left.T, bits).T)
    worst = {4: 0.2, 8: 0.02, 16: 1e-3}[bits]
    assert float((found.right - factors.right).norm() / factors.right.norm()) < worst


def test_factors_beside_the_backbone_pay_and_the_best_iterate_is_kept() -> None:
    weight, metric = random(48, 64, seed=9), Metric(gram(64), damping=0.01)
    alone = decompose(weight, metric, Settings(2, rank=0))
    found = decompose(weight, metric, Settings(2, rank=8, iterations=4))
    assert found.factors is not None
    assert len(found.errors) == 4
    assert found.error < 0.9 * alone.error
    left = weight - dense(found.backbone) - found.factors.product()
    assert cost(left, metric) / cost(weight, metric) == pytest.approx(found.error, rel=1e-3)


def test_the_paper_s_arithmetic_of_average_bits() -> None:
    """2.1, 2.2 and 2.4 bits at ranks 64, 128 and 256 over Llama 2 7B's seven linears."""
    linears = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    weights = sum(rows * columns for rows, columns in linears)
    found = []
    for rank in (64, 128, 256):
        parts = [factor_parts(shape, rank, 4) for shape in linears]
        codes = sum(p[name][1][0] * p[name][1][1] for p in parts for name in ("left", "right"))
        found.append(2 + 8 * codes / weights)
    assert found == pytest.approx([2.1, 2.2, 2.4], abs=0.01)


def test_what_cannot_be_decomposed_is_refused_by_name() -> None:
    metric = Metric(torch.eye(24))
    with pytest.raises(CompressionRefused, match="NaN"):
        decompose(torch.full((8, 24), torch.nan), metric, Settings())
    with pytest.raises(CompressionRefused, match="--rank is 32"):
        decompose(torch.ones(8, 24), metric, Settings())
    with pytest.raises(CompressionRefused, match="linear of 20 inputs"):
        decompose(torch.ones(8, 20), metric, Settings(rank=2))
