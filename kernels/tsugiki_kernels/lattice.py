"""Weights on the E8P lattice: 16 bits of code for eight weights, and a table of 256 entries.

Owns: the codebooks, the resident form of a lattice linear and the formula of its weight. Knows
nothing of files, of how codes were found (compress_base/), of backends.

Source: QuIP# (arXiv 2402.04396), section 4; CALDERA (arXiv 2405.18886) takes its backbone from it.
Ours: the 29 vectors of squared norm 12, the order of the table, and a scale for each row where they
rotate the outputs too: the error under the Hessian is the same, and outputs need no rotation.

A code's low byte says which vector of magnitudes, bits 8 to 14 the signs of its first seven
coordinates (1: negative), bit 15 the shift: +1/4 when it is 0, else -1/4. The eighth sign makes
the sum of the eight coordinates, before the shift, even.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import torch
from torch import Tensor

from tsugiki_kernels.hadamard import Rotation, rotation_of

GROUP = 8  # weights of a code
LATTICE_BITS = (2, 3, 4)
# a residual is multiplied with this before it is encoded, divided by it when it is decoded
RESIDUAL_FACTOR = {3: 2.04, 4: 3.45}
RESIDUAL_DTYPE = {3: torch.uint8, 4: torch.int16}
SHIFT = 0.25
LARGEST_NORM = 10.0  # squared, of the ball that the table holds whole
PADDED_NORM = 12.0  # squared, of the vectors that fill it up to 256


@dataclass(frozen=True, slots=True)
class LatticeWeight:
    """W = scale_r * v[r] U, v the decoded codes of a row and U the inverse rotation of its width.

    With 3 or 4 bits v = e8p(codes) + second(residual) / factor, the second being `E8_BALL` or the
    E8P codebook again.
    """

    shape: tuple[int, int]  # (out, in), in a multiple of 8
    bits: int  # 2, 3 or 4
    codes: Tensor  # int16 [out, in / 8], the 16 bits of a code
    residual: Tensor | None  # [out, in / 8]: uint8 with 3 bits, int16 with 4, none with 2
    scales: Tensor  # bfloat16 [out]

    @property
    def rotation(self) -> Rotation:
        """Of the inputs."""
        return rotation_of(self.shape[1])

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        second = 0 if self.residual is None else self.residual.nbytes
        return self.codes.nbytes + second + self.scales.nbytes


def decoded(weight: LatticeWeight) -> Tensor:
    """float32 [out, in] in the rotated basis: what a rotated input is multiplied with."""
    values = e8p(weight.codes)
    if weight.residual is not None:
        second = e8p(weight.residual) if weight.bits == 4 else _ball(weight.residual)
        values = values + second / RESIDUAL_FACTOR[weight.bits]
    return values.flatten(1) * weight.scales.float()[:, None]


def _ball(codes: Tensor) -> Tensor:
    return e8_ball().to(codes.device)[codes.long()]


def dense(weight: LatticeWeight) -> Tensor:
    """float32 [out, in]: the weight itself."""
    return weight.rotation.undo(decoded(weight))


def e8p(codes: Tensor) -> Tensor:
    """float32 [..., 8] of int16 codes [...]."""
    bits = codes.int() & 0xFFFF
    magnitudes = e8p_magnitudes().to(codes.device)[(bits & 0xFF).long()]
    negative = (bits[..., None] >> 8 + torch.arange(7, device=codes.device)) & 1
    odd = magnitudes.sum(-1).int() & 1
    last = (negative.sum(-1) + odd) & 1
    signs = 1 - 2 * torch.cat([negative, last[..., None]], dim=-1)
    shift = SHIFT * (1 - 2 * (bits >> 15))
    return magnitudes * signs + shift[..., None]


@lru_cache(maxsize=1)
def e8p_magnitudes() -> Tensor:
    """float32 [256, 8]: halves of odd numbers.

    First the 227 vectors of squared norm at most 10 in lexicographic order, then those of squared
    norm 12 with five coordinates 3/2: of the 56, in lexicographic order, number 0, 2, ..., 54, 55.
    """
    ball = [v for v in product((0.5, 1.5, 2.5), repeat=GROUP) if _norm(v) <= LARGEST_NORM]
    padding = [v for v in product((0.5, 1.5), repeat=GROUP) if _norm(v) == PADDED_NORM]
    return torch.tensor(ball + padding[::2] + padding[-1:])


def _norm(vector: tuple[float, ...]) -> float:
    return sum(value * value for value in vector)


@lru_cache(maxsize=1)
def e8_ball() -> Tensor:
    """float32 [256, 8], points of E8: 0; the 112 roots with two coordinates of +1 or -1 (pairs of
    places in lexicographic order, each with the signs ++, +-, -+, --); the 128 roots of halves with
    an even number of minus signs (bit i of the number says that coordinate i is negative,
    ascending); then +2 and -2 in coordinate 0, 1, ... up to 256 points."""
    points = [[0.0] * GROUP]
    for first, second in combinations(range(GROUP), 2):
        for one, other in product((1.0, -1.0), repeat=2):
            point = [0.0] * GROUP
            point[first], point[second] = one, other
            points.append(point)
    for number in range(1 << GROUP):
        if number.bit_count() % 2 == 0:
            points.append([-0.5 if number >> i & 1 else 0.5 for i in range(GROUP)])
    for place, sign in product(range(GROUP), (2.0, -2.0)):
        point = [0.0] * GROUP
        point[place] = sign
        points.append(point)
    return torch.tensor(points[:256])
