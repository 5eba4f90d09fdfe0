"""One linear as a lattice backbone and low-rank factors: W = Q + L R.

Source: CALDERA (arXiv 2405.18886), algorithm 1: rounding of W - L R on the lattice and regression
of W - Q in turns, the best iterate kept. Does not know: models, calibration text, files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs.factors import Factors
from tsugiki.codecs.low_rank_fit import DAMPING, damped, fit
from tsugiki.compress_base.ldlq import block_factor, sweep
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.hadamard import rotation_of
from tsugiki_kernels.lattice import GROUP, LatticeWeight

ITERATIONS = 6


@dataclass(frozen=True, slots=True)
class Settings:
    """How a linear is decomposed."""

    bits: int = 2  # of the backbone: 2, 3 or 4
    rank: int = 32  # 0: the backbone alone
    factor_bits: int = 4  # 4, 8 or 16
    iterations: int = ITERATIONS


@dataclass(frozen=True, slots=True)
class Decomposed:
    """The best iterate. Errors are sqrt(tr(E H E^T) / tr(W H W^T)), one for each iteration."""

    backbone: LatticeWeight
    factors: Factors | None  # None: rank 0
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The one that was kept."""
        return min(self.errors)


class Metric:
    """What an error of a weight costs, by the damped Gram matrix of the inputs; q, k and v share
    one, as gate and up do."""

    def __init__(self, gram: Tensor, damping: float = DAMPING) -> None:
        """`gram`: the mean of x x^T, float32 [in, in]."""
        self.gram = damped(gram, damping)
        self.rotation = rotation_of(len(gram))
        turned = self.rotation.apply(self.rotation.apply(self.gram).T.contiguous())
        self.factor = block_factor((turned + turned.T) / 2)

    def cost(self, error: Tensor) -> float:
        """tr(E H E^T)."""
        return float(((error @ self.gram) * error).sum())


def decompose(weight: Tensor, metric: Metric, settings: Settings) -> Decomposed:
    """Decompose a weight [out, in].

    Raises:
        CompressionRefused: NaN or infinity, a width that groups of 8 do not divide, a rank beyond
            the matrix.
    """
    weight = weight.float()
    _check(weight, settings)
    whole = metric.cost(weight)
    factors = _fitted(weight, metric, settings)
    best: Decomposed | None = None
    errors: list[float] = []
    for _ in range(settings.iterations if settings.rank else 1):
        target = weight if factors is None else weight - factors.product()
        found = sweep(metric.rotation.apply(target), metric.factor, settings.bits)
        left = weight - metric.rotation.undo(found.values)
        factors = _fitted(left, metric, settings)
        final = left if factors is None else left - factors.product()
        errors.append((metric.cost(final) / whole) ** 0.5 if whole else 0.0)
        if best is None or errors[-1] < best.error:
            backbone = LatticeWeight(
                (weight.shape[0], weight.shape[1]),
                settings.bits,
                found.codes,
                found.residual,
                found.scales,
            )
            best = Decomposed(backbone, factors, tuple(errors))
    if best is None:
        raise CompressionRefused(f"--iterations is {settings.iterations}; it must be at least 1")
    return Decomposed(best.backbone, best.factors, tuple(errors))


def _fitted(target: Tensor, metric: Metric, settings: Settings) -> Factors | None:
    if not settings.rank:
        return None
    return fit(target, metric.gram, settings.rank, settings.factor_bits).factors


def _check(weight: Tensor, settings: Settings) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise CompressionRefused("the weight holds NaN or infinity: repair the checkpoint first")
    if weight.shape[1] % GROUP:
        raise CompressionRefused(
            f"a linear of {weight.shape[1]} inputs has no lattice code: {GROUP} must divide them"
        )
    if settings.rank > min(weight.shape):
        raise CompressionRefused(
            f"--rank is {settings.rank}, more than a linear of {list(weight.shape)} has"
        )
