"""Low-rank factors in few bits: how a CALDERA base and its variants store L R.

Owns: the rounding of a factor and its stored form. Does not know: how factors are found
(low_rank_fit.py), files, bases.

A factor is stored rank by rank, each vector rotated (tsugiki_kernels/hadamard.py): that leaves no
entry far larger than the others, so that one step for a vector is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Part
from tsugiki_kernels.deltas import LowRankDelta
from tsugiki_kernels.hadamard import rotation_of

FACTOR_BITS = (4, 8, 16)
LEFT, RIGHT, LEFT_STEP, RIGHT_STEP = "left", "right", "left_step", "right_step"
# steps that are tried, relative to what puts a vector's largest entry on the last level
STEPS = torch.linspace(0.4, 1.0, 13)


@dataclass(frozen=True, slots=True)
class Factors:
    """L R of a linear: `left` [out, rank] is L, `right` [rank, in] is R, float32."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """How many vectors each has."""
        return self.right.shape[0]

    def product(self) -> Tensor:
        """float32 [out, in]."""
        return self.left @ self.right


def factor_parts(shape: tuple[int, int], rank: int, bits: int) -> Mapping[str, Part]:
    """The stored tensors of factors of this rank: name -> (dtype, shape)."""
    rows, columns = shape
    if bits == 16:
        half = torch.float16
        return {LEFT: (half, (rank, rows)), RIGHT: (half, (rank, columns)), **_steps(rank)}
    packed = ((rank, packing.packed_bytes(width, bits)) for width in (rows, columns))
    left, right = packed
    return {LEFT: (torch.uint8, left), RIGHT: (torch.uint8, right), **_steps(rank)}


def _steps(rank: int) -> Mapping[str, Part]:
    return {LEFT_STEP: (torch.bfloat16, (rank,)), RIGHT_STEP: (torch.bfloat16, (rank,))}


def stored(factors: Factors, bits: int) -> dict[str, Tensor]:
    """The tensors of `factor_parts`."""
    left, left_step = _coded(factors.left.T.contiguous(), bits)
    right, right_step = _coded(factors.right, bits)
    return {LEFT: left, RIGHT: right, LEFT_STEP: left_step, RIGHT_STEP: right_step}


def read(tensors: Mapping[str, Tensor], shape: tuple[int, int], bits: int) -> Factors:
    """What stored tensors stand for."""
    rows, columns = shape
    left = _decoded(tensors[LEFT], tensors[LEFT_STEP], rows, bits)
    return Factors(
        left.T.contiguous(), _decoded(tensors[RIGHT], tensors[RIGHT_STEP], columns, bits)
    )


def empty(shape: tuple[int, int]) -> Factors:
    """Factors of rank 0."""
    return Factors(torch.zeros(shape[0], 0), torch.zeros(0, shape[1]))


def low_rank_delta(factors: Factors, dtype: torch.dtype, bias: Tensor | None) -> LowRankDelta:
    """What kernels read: factors in the dtype of activations."""
    return LowRankDelta(factors.right.to(dtype), factors.left.to(dtype), 1.0, bias)


def beside(first: LowRankDelta, second: LowRankDelta) -> LowRankDelta:
    """The sum of two, of one dtype, as one of the sum of their ranks; the bias is the second's."""
    scaled = ((delta.b.float() * delta.scale).to(delta.b.dtype) for delta in (first, second))
    a = torch.cat([first.a, second.a])
    return LowRankDelta(a, torch.cat(list(scaled), dim=1), 1.0, second.bias)


def rounded(vectors: Tensor, bits: int) -> Tensor:
    """What is left of vectors [rank, width] once they are stored."""
    codes, step = _coded(vectors, bits)
    return _decoded(codes, step, vectors.shape[1], bits)


def _coded(vectors: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and step of each vector: value = (code - (2^bits - 1) / 2) * step, or, with 16 bits, a
    float16 times the step."""
    turned = rotation_of(vectors.shape[1]).apply(vectors)
    largest = turned.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 256)
    if bits == 16:
        step = largest.bfloat16()
        return (turned / step.float()[:, None]).half(), step
    half = ((1 << bits) - 1) / 2
    best, least = (largest / half).bfloat16(), torch.full_like(largest, torch.inf)
    for share in STEPS:
        step = (largest / half * share).bfloat16()
        error = (_levels(turned, step, half) - turned).square().sum(1)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    codes = (turned / best.float()[:, None] + half).round().clamp(0, 2 * half)
    return packing.pack(codes.to(torch.uint8), bits), best


def _levels(vectors: Tensor, step: Tensor, half: float) -> Tensor:
    scale = step.float()[:, None]
    return ((vectors / scale + half).round().clamp(0, 2 * half) - half) * scale


def _decoded(codes: Tensor, step: Tensor, width: int, bits: int) -> Tensor:
    """float32 [rank, width]."""
    if bits == 16:
        values = codes.float()
    else:
        values = packing.unpack(codes, bits, width).float() - ((1 << bits) - 1) / 2
    return rotation_of(width).undo(values * step.float()[:, None])
