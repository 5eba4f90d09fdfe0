"""The low-rank part that costs a linear's outputs least: regression under a Gram matrix.

Owns: rank-constrained regression, and the alternation that makes up for the rounding of the
factors (CALDERA, arXiv 2405.18886, algorithm 1 and section 4: "LPLRFactorize"). Does not know: how
factors are stored (factors.py), lattices, files.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki.codecs.factors import Factors, rounded

DAMPING = 0.1  # of the mean diagonal, added to it; 0.01 left 1 to 4 % more error on other text
SWEEPS = 4  # of the alternation between the two factors
RIDGE = 1e-6  # relative: what keeps small systems solvable when a vector rounds to nothing


class Fitted(NamedTuple):
    """Factors as they are stored, and the squared error that they leave."""

    factors: Factors
    error: float  # tr(E H E^T), E what the product lacks


def fit(target: Tensor, gram: Tensor, rank: int, bits: int, sweeps: int = SWEEPS) -> Fitted:
    """The factors of float32 `target` [out, in], rounded to `bits`, that leave the least
    tr(E H E^T), H = `gram` [in, in], positive definite. Of all sweeps the best is kept: the
    alternation need not descend."""
    problem = _Problem(target, gram)
    found = regression(target, gram, rank)
    right = found.right
    best: Fitted | None = None
    for _ in range(sweeps):
        right = rounded(right, bits)
        left = rounded(problem.left_of(right).T, bits).T
        error = problem.error(left, right)
        if best is None or error < best.error:
            best = Fitted(Factors(left.contiguous(), right), error)
        right = problem.right_of(left)
    if best is None:
        raise ValueError("sweeps must be at least 1")
    return best


def damped(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """A Gram matrix [in, in] scaled to a mean diagonal of 1, and made positive definite."""
    scale = float(gram.diagonal().mean()) or 1.0
    return gram / scale + damping * torch.eye(len(gram), device=gram.device)


def regression(target: Tensor, gram: Tensor, rank: int) -> Factors:
    """The best factors without rounding: with H = C C^T, L the leading left singular vectors of
    target C and R = L^T target. Works on the smaller side's square matrix."""
    rows, columns = target.shape
    if rows <= columns:
        _, vectors = torch.linalg.eigh(target @ gram @ target.T)
        left = vectors[:, -rank:].flip(1)
    else:
        seen = target @ torch.linalg.cholesky(gram)
        _, vectors = torch.linalg.eigh(seen.T @ seen)
        left = torch.linalg.qr(seen @ vectors[:, -rank:].flip(1))[0]
    return Factors(left.contiguous(), left.T @ target)


class _Problem:
    """min over L, R of tr((A - L R) H (A - L R)^T)."""

    def __init__(self, target: Tensor, gram: Tensor) -> None:
        self._target, self._gram = target, gram
        self._seen = target @ gram
        self._whole = float((self._seen * target).sum())

    def left_of(self, right: Tensor) -> Tensor:
        """The least squares of L for this R."""
        return _solved(right @ self._gram @ right.T, (self._seen @ right.T).T).T

    def right_of(self, left: Tensor) -> Tensor:
        """The least squares of R for this L, which H does not change."""
        return _solved(left.T @ left, left.T @ self._target)

    def error(self, left: Tensor, right: Tensor) -> float:
        """See `Fitted.error`."""
        met = (left * (self._seen @ right.T)).sum()
        own = ((left.T @ left) * (right @ self._gram @ right.T)).sum()
        return self._whole - 2 * float(met) + float(own)


def _solved(square: Tensor, values: Tensor) -> Tensor:
    """square^-1 values, `square` symmetric and perhaps almost singular."""
    ridge = RIDGE * square.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    unit = torch.eye(len(square), dtype=torch.float64, device=square.device)
    found: Tensor = torch.linalg.solve(square.double() + float(ridge) * unit, values.double())
    return found.float()
