"""Rounding with feedback: each group of eight columns makes up for the errors of those behind it.

Owns: the block factor of a Gram matrix and the sweep (LDLQ of QuIP#, arXiv 2402.04396, section 3.1
and algorithm 2, blocks as wide as the lattice). Does not know: how groups are encoded (e8p.py),
rotations, models.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki.compress_base.e8p import encode
from tsugiki_kernels.lattice import GROUP

# the root mean square at which Gaussian values lose least in each codebook
BEST_SCALE = {2: 1.03, 3: 0.98, 4: 0.95}


class Swept(NamedTuple):
    """Codes of all groups of a weight, and the weight that they stand for."""

    codes: Tensor  # int16 [out, in / 8]
    residual: Tensor | None
    scales: Tensor  # bfloat16 [out]
    values: Tensor  # float32 [out, in], scaled


def block_factor(gram: Tensor) -> Tensor:
    """L of gram = L D L^T, float32 [in, in]: lower triangular by blocks of 8, unit blocks on the
    diagonal, D block diagonal. `gram` is positive definite."""
    factor = torch.linalg.cholesky(gram.double())
    blocks = len(gram) // GROUP
    places = torch.arange(blocks, device=gram.device)
    own = factor.view(blocks, GROUP, blocks, GROUP)[places, :, places]  # [blocks, 8, 8]
    columns: Tensor = factor.view(-1, blocks, GROUP).transpose(0, 1) @ torch.linalg.inv(own)
    return columns.transpose(0, 1).reshape(len(gram), -1).float()


def scales_of(weight: Tensor, bits: int) -> Tensor:
    """bfloat16 [out]: what brings each row to the codebook's best root mean square."""
    root = weight.square().mean(1).sqrt() / BEST_SCALE[bits]
    return root.clamp_min(torch.finfo(torch.float32).tiny * 256).bfloat16()


def sweep(weight: Tensor, factor: Tensor, bits: int) -> Swept:
    """Codes of a weight [out, in], from the last group to the first.

    The target of group k is w_k + (w - q)_{>k} L_{>k,k}; the error under the Gram matrix is then
    the sum over groups of the plain rounding error weighted with D_k.
    """
    scales = scales_of(weight, bits)
    plain = scales.float()[:, None]
    left = weight / plain
    errors = torch.zeros_like(left)
    size = len(weight), weight.shape[1] // GROUP
    codes = torch.empty(size, dtype=torch.int16, device=weight.device)
    second: list[Tensor] = []
    for k in reversed(range(codes.shape[1])):
        own, later = slice(k * GROUP, (k + 1) * GROUP), slice((k + 1) * GROUP, None)
        target = left[:, own] + errors[:, later] @ factor[later, own]
        found = encode(target, bits)
        codes[:, k] = found.codes
        errors[:, own] = left[:, own] - found.values
        if found.residual is not None:
            second.append(found.residual)
    residual = torch.stack(second[::-1], 1) if second else None
    return Swept(codes, residual, scales, (left - errors) * plain)
