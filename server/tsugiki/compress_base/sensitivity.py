"""What calibration says about the inputs of a linear: where an error of its weight costs output.

Owns: the Gram matrix of inputs, its conditioning and the Cholesky factor that the sweep walks by
(GPTQ, arXiv 2210.17323, algorithm 1). Does not know: models, codebooks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.model.device import CPU

DAMPING = 0.1  # of the mean diagonal, added to it; 0.01 left 1 to 8 % more error of outputs


class Gram:
    """The running mean of x x^T over rows of inputs; float32 [in, in]."""

    def __init__(self, width: int, device: torch.device = CPU) -> None:
        self.sum = torch.zeros(width, width, device=device)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Add inputs [n, in]."""
        rows = rows.float()
        self.sum.addmm_(rows.T, rows)
        self.rows += len(rows)

    def mean(self) -> Tensor:
        """float32 [in, in]."""
        return self.sum / max(1, self.rows)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How a linear's input columns are walked."""

    order: Tensor  # int64 [in]: columns by falling second moment (act-order)
    gram: Tensor  # float32 [in, in]: the Gram matrix, damped, as the weight's columns lie
    factor: Tensor  # float32 [in, in]: upper Cholesky factor of its inverse, in order
    dead: Tensor  # bool [in], as the weight's columns lie: inputs that are always zero

    def weights(self, power: float) -> Tensor:
        """What an error in a column costs, float32 [in], as the weight's columns lie."""
        found = torch.empty_like(self.gram[0])
        found[self.order] = self.factor.diagonal() ** -power
        return found / found.mean()


def sensitivity(gram: Tensor, damping: float = DAMPING) -> Sensitivity:
    """From the mean of x x^T, [in, in]; a channel that is never used costs nothing."""
    gram = gram.double()
    dead = gram.diagonal() == 0
    gram = gram + torch.diag(dead.double())
    mean = gram.diagonal().mean()
    order = gram.diagonal().argsort(descending=True, stable=True)
    damped = gram + torch.diag((damping * mean).expand(len(gram)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    factor = torch.linalg.cholesky(inverse, upper=True)
    return Sensitivity(order, damped.float(), factor.float(), dead)


def indifferent(width: int, device: torch.device = CPU) -> Sensitivity:
    """Without calibration: every input weighs the same, and no error can be made up for."""
    order, one = torch.arange(width, device=device), torch.eye(width, device=device)
    return Sensitivity(order, one, one, torch.zeros(width, dtype=torch.bool, device=device))
