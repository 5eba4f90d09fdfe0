"""What a codec of the frontier gets and gives: one linear's delta, approximated, and its price.

Owns: the two counts of bits. Honest: all that a decoder needs beside the base, positions, scales
and seeds included. Nominal: as the method's paper counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsugiki.codecs.base import ModuleStats

SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """One linear of one row of the frontier."""

    name: str
    base: Tensor  # float32 [out, in]
    tuned: Tensor  # float32 [out, in]
    size: float  # honest bits per parameter that may be taken
    seed: int
    stats: ModuleStats | None  # of the linear's inputs
    gram: Tensor | None = None  # float32 [in, in]: E[x x^T] of them
    share: float = 1.0  # of the usual bytes, where a codec shares them out by sensitivity

    def on(self, device: torch.device) -> "Asked":
        """The same with its matrices there; statistics stay on the CPU."""
        gram = None if self.gram is None else self.gram.to(device)
        return replace(self, base=self.base.to(device), tuned=self.tuned.to(device), gram=gram)

    @property
    def delta(self) -> Tensor:
        """float32 [out, in]."""
        return self.tuned - self.base

    @property
    def limit(self) -> float:
        """Bits that may be taken."""
        return self.size * self.base.numel()


@dataclass(frozen=True, slots=True)
class Approximation:
    """What stands for the delta."""

    delta: Tensor  # float32 [out, in]
    bits: float  # honest
    nominal_bits: float
    bias: Tensor | None = None  # float32 [out]


Method = Callable[[Asked], Approximation | None]  # None: the codec has no setting this small
