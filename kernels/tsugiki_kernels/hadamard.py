"""The rotation that makes weights look Gaussian: a Hadamard transform behind fixed random signs.

Owns: which orthogonal matrix belongs to a width, and multiplying with it. Knows nothing of
lattices, files, backends.

Source: QuIP# (arXiv 2402.04396), "randomized Hadamard transform". Of a width n = m 2^p the matrix
is H_m (x) H_2 (x) ... (x) H_2, H_m by Paley's constructions for m = 12, 20, 28, 36 and so on. A
width that has none (11008 = 43 256) is cut into equal blocks of a power of two. The signs belong to
the width alone, so that variants and bases agree on them without storing any.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

LARGEST_ORDER = 256  # of a Paley matrix, which is multiplied with as it is


@dataclass(frozen=True, slots=True)
class Rotation:
    """x -> (x * signs) H with H orthogonal and symmetric under transposition of its order.

    H is block diagonal: `blocks` times the same matrix of width order * 2^doublings.
    """

    width: int
    blocks: int
    order: int  # 1, or that of a Paley matrix
    doublings: int

    @property
    def block(self) -> int:
        """The width of one block."""
        return self.order << self.doublings

    def apply(self, x: Tensor) -> Tensor:
        """Rows of `x` [..., width] rotated; float32."""
        return self._transformed(x.float() * signs(self.width).to(x.device), paley(self.order))

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `apply`; float32."""
        back = self._transformed(x.float(), paley(self.order).T)
        return back * signs(self.width).to(x.device)

    def _transformed(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (M (x) H_2 (x) ... (x) H_2) / sqrt(block)."""
        shape, power = x.shape, 1 << self.doublings
        y = x.reshape(-1, self.order, power)
        step = 1
        while step < power:
            pairs = y.reshape(-1, power // (2 * step), 2, step)
            first, second = pairs[:, :, 0], pairs[:, :, 1]
            y = torch.stack([first + second, first - second], dim=2)
            step *= 2
        y = y.reshape(-1, self.order, power)
        if self.order > 1:
            y = torch.einsum("rmp,mk->rkp", y, matrix.to(y.device))
        return (y / math.sqrt(self.block)).reshape(shape)


@lru_cache(maxsize=64)
def rotation_of(width: int) -> Rotation:
    """The rotation of a width: one block where there is a Hadamard matrix, else several."""
    odd = width // (width & -width)
    doublings = (width & -width).bit_length() - 1
    if odd == 1:
        return Rotation(width, 1, 1, doublings)
    for extra in range(2, doublings + 1):
        order = odd << extra
        if order <= LARGEST_ORDER and _paley_prime(order) is not None:
            return Rotation(width, 1, order, doublings - extra)
    return Rotation(width, odd, 1, doublings)


@lru_cache(maxsize=64)
def signs(width: int) -> Tensor:
    """float32 [width] of +1 and -1: that of column c is -1 when bit c mod 256 (least significant
    first) of SHA-256("tsugiki.rotation/1 WIDTH BLOCK") is 1, BLOCK being c // 256 in decimal."""
    found = []
    for block in range(-(-width // 256)):
        digest = hashlib.sha256(f"tsugiki.rotation/1 {width} {block}".encode()).digest()
        number = int.from_bytes(digest, "little")
        found += [1.0 - 2.0 * (number >> bit & 1) for bit in range(256)]
    return torch.tensor(found[:width])


@lru_cache(maxsize=16)
def paley(order: int) -> Tensor:
    """float32 [order, order] of +1 and -1, rows orthogonal.

    With J the Jacobsthal matrix of a prime q, J[i, j] = (i - j is a square mod q): of q = 3 mod 4
    and order q + 1 it is I + S, S skew; of q = 1 mod 4 and order 2 (q + 1) it is
    S (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]], S symmetric; S is J bordered by ones.
    """
    if order == 1:
        return torch.ones(1, 1)
    prime = _paley_prime(order)
    if prime is None:
        raise ValueError(f"no Paley matrix of order {order}")
    bordered = torch.zeros(prime + 1, prime + 1)
    bordered[0, 1:] = 1.0
    bordered[1:, 0] = 1.0 if prime % 4 == 1 else -1.0
    bordered[1:, 1:] = _jacobsthal(prime)
    unit = torch.eye(prime + 1)
    if prime % 4 == 3:
        return unit + bordered
    outer = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    inner = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(bordered, outer) + torch.kron(unit, inner)


def _jacobsthal(prime: int) -> Tensor:
    squares = {value * value % prime for value in range(1, prime)}
    character = [0.0] + [1.0 if value in squares else -1.0 for value in range(1, prime)]
    difference = torch.arange(prime)[:, None] - torch.arange(prime)[None, :]
    return torch.tensor(character)[difference % prime]


def _paley_prime(order: int) -> int | None:
    """The prime of the construction of this order; None: neither has one."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1
    half = order // 2 - 1
    return half if order % 2 == 0 and _is_prime(half) and half % 4 == 1 else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
