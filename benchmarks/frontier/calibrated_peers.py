"""Peers that look at inputs: pruning with GPTQ (DeltaZip's recipe) and DAREx-q.

Owns: their settings at a size. Sources stand at each function.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.frontier.approximation import Approximation, Asked
from benchmarks.frontier.peers import dare

FLOAT_BITS = 16
BITS = 4  # of a kept entry; DeltaZip's other setting, 2, has no room for zero and two signs
DAMPING = 0.01  # of the mean diagonal, as GPTQ and SparseGPT have it
BLOCK = 128  # columns between two updates of the rest
PATTERNS = ((2, 4), *((1, m) for m in (4, 8, 16, 32, 64, 96, 192)))  # n kept of m


def deltazip(asked: Asked) -> Approximation | None:
    """DeltaZip (arXiv 2312.05215): the delta pruned 2:4 and rounded in one SparseGPT sweep. The
    published pattern takes 2.7 b/p; below, the same sweep keeps 1 of m. Positions at log2 of the
    number of patterns, a scale for each row."""
    rows, columns = asked.base.shape
    for kept, of in PATTERNS:
        bits = _bits(rows, columns, kept, of)
        if bits <= asked.limit and columns % of == 0:
            swept = _swept(asked.delta.clone(), _factor(_gram(asked)), kept, of)
            return Approximation(swept, bits, float(rows * columns * kept * BITS / of))
    return None


def _bits(rows: int, columns: int, kept: int, of: int) -> float:
    group = kept * BITS + math.log2(math.comb(of, kept))
    return rows * (columns / of * group + FLOAT_BITS)


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of H^-1, float32 [in, in]; inputs that are always 0 count as 1."""
    h = gram.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor


def _swept(left: Tensor, factor: Tensor, kept: int, of: int) -> Tensor:
    """SparseGPT (arXiv 2301.00774): column by column, what is lost goes to the columns behind.

    `left` [out, in] is used up; the result has `kept` of `of` entries in codes of BITS bits.
    """
    rows, columns = left.shape
    step = left.abs().amax(1) / (2 ** (BITS - 1) - 1)
    step = step.clamp_min(torch.finfo(torch.float32).tiny)
    done = torch.zeros_like(left)
    size = max(BLOCK, of)
    for start, end in _blocks(columns, size):
        errors = torch.zeros(rows, end - start, device=left.device)
        for column in range(start, end):
            if column % of == 0:
                keep = _largest(left[:, column : column + of], factor, column, kept)
            value = left[:, column]
            coded = (value / step).round().clamp(-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) * step
            done[:, column] = torch.where(keep[:, column % of], coded, 0.0)
            error = (value - done[:, column]) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return done


def _blocks(columns: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, columns)) for start in range(0, columns, size))


def _largest(group: Tensor, factor: Tensor, column: int, kept: int) -> Tensor:
    """bool [out, of]: entries whose loss would cost the most, w^2 / [H^-1]_cc."""
    diagonal = factor.diagonal()[column : column + group.shape[1]]
    top = (group / diagonal).square().topk(kept, dim=1).indices
    return torch.zeros_like(group, dtype=torch.bool).scatter_(1, top, value=True)


def darex_q(asked: Asked) -> Approximation | None:
    """DAREx-q (arXiv 2410.09344): DARE whose rescaling 1 / q is the one that changes the outputs
    least, here of each linear on the calibration inputs; 16 more bits for it."""
    found = dare(asked)
    if found is None:
        return None
    reached = found.delta @ _gram(asked)
    energy = float((reached * found.delta).sum())
    factor = float((reached * asked.delta).sum()) / energy if energy > 0 else 1.0
    return replace(found, delta=found.delta * factor, bits=found.bits + FLOAT_BITS)


def _gram(asked: Asked) -> Tensor:
    """Inputs of an embedding are rows of the identity."""
    if asked.gram is None:
        return torch.eye(asked.base.shape[1], device=asked.base.device)
    return asked.gram
