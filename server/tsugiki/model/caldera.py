"""How a CALDERA base is stored: of each linear a lattice backbone Q and factors L, R.

Owns: names, settings and checks of these tensors (docs/format.md, "CALDERA bases"). Does not know:
files, how they are found (compress_base/), what multiplies with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tsugiki.codecs import factors as stored_factors
from tsugiki.codecs.factors import FACTOR_BITS, Factors, factor_parts
from tsugiki.errors import UnsupportedModel
from tsugiki.model.slab import Take, below
from tsugiki.model.stored_form import Read, settings_of
from tsugiki_kernels.lattice import (
    GROUP,
    LATTICE_BITS,
    RESIDUAL_DTYPE,
    LatticeWeight,
    dense,
)

CODES, RESIDUAL, SCALES = ".codes", ".residual", ".scales"  # after the name of the weight
KEY = "caldera"  # of config.json's "tsugiki" object
NAMES = ("bits", "rank", "factor_bits")


@dataclass(frozen=True, slots=True)
class CalderaSettings:
    """What all linears of a base have in common."""

    bits: int  # of the backbone: 2, 3 or 4
    rank: int  # of L R; 0: none
    factor_bits: int  # of their entries: 4, 8 or 16

    marker: ClassVar[str] = CODES
    suffixes: ClassVar[frozenset[str]] = frozenset(
        {CODES, RESIDUAL, SCALES, ".left", ".right", ".left_step", ".right_step"}
    )
    dense_dtype: ClassVar[str] = "F32"

    @property
    def resident(self) -> tuple[str, ...]:
        """See `StoredForm.resident`; factors are kept in the dtype of activations."""
        return (CODES, SCALES) if self.bits == 2 else (CODES, RESIDUAL, SCALES)

    def __post_init__(self) -> None:
        known = self.bits in LATTICE_BITS and self.factor_bits in FACTOR_BITS
        if not known or self.rank < 0:
            raise UnsupportedModel(
                f"a lattice of {self.bits} bits with factors of rank {self.rank} and "
                f"{self.factor_bits} bits; lattices have 2, 3 or 4 bits, factors 4, 8 or 16"
            )

    def stored(self) -> dict[str, Any]:
        """See `StoredForm.stored`."""
        return {name: getattr(self, name) for name in NAMES}

    def shape(self, marker_shape: tuple[int, ...], read: Read) -> tuple[int, int]:
        """See `StoredForm.shape`."""
        rows, groups = marker_shape
        return rows, groups * GROUP

    def lattice(self, name: str, shape: tuple[int, int], read: Read) -> LatticeWeight:
        """The backbone.

        Raises:
            UnsupportedModel: its tensors do not fit together.
        """
        codes = (shape[0], shape[1] // GROUP)
        residual = None
        if self.bits > 2:
            residual = _checked(name, RESIDUAL, read, RESIDUAL_DTYPE[self.bits], codes)
        return LatticeWeight(
            shape,
            self.bits,
            _checked(name, CODES, read, torch.int16, codes),
            residual,
            _checked(name, SCALES, read, torch.bfloat16, shape[:1]),
        )

    def factors(self, name: str, shape: tuple[int, int], read: Read) -> Factors | None:
        """The base's own L and R; None: rank 0.

        Raises:
            UnsupportedModel: their tensors do not fit together.
        """
        if not self.rank:
            return None
        parts = factor_parts(shape, self.rank, self.factor_bits)
        found = {
            part: _checked(name, f".{part}", read, dtype, size)
            for part, (dtype, size) in parts.items()
        }
        return stored_factors.read(found, shape, self.factor_bits)

    def dense(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.dense`: float32, Q + L R."""
        own = self.factors(name, shape, read)
        weight = self.backbone(name, shape, read)
        return weight if own is None else weight + own.product()

    def backbone(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.backbone`: Q."""
        return dense(self.lattice(name, shape, read))


def caldera_settings(config: Mapping[str, Any]) -> CalderaSettings | None:
    """What config.json says as {"tsugiki": {"caldera": {"bits", "rank", "factor_bits"}}}; None:
    nothing.

    Raises:
        UnsupportedModel: it says something else.
    """
    found = settings_of(config, KEY, NAMES)
    return None if found is None else CalderaSettings(*found)


def stacked(weights: Sequence[LatticeWeight], take: Take) -> LatticeWeight:
    """Weights of one width below each other, in memory from `take(shape, dtype)`."""
    first = weights[0]
    rows = sum(weight.shape[0] for weight in weights)
    second = [weight.residual for weight in weights if weight.residual is not None]
    return LatticeWeight(
        (rows, first.shape[1]),
        first.bits,
        below(take, [weight.codes for weight in weights]),
        below(take, second) if second else None,
        below(take, [weight.scales for weight in weights]),
    )


def _checked(
    name: str, suffix: str, read: Read, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    found = read(suffix)
    if found.dtype != dtype or tuple(found.shape) != tuple(shape):
        raise UnsupportedModel(
            f"{name}{suffix} is {found.dtype} {list(found.shape)}; expected {dtype} {list(shape)}: "
            "compress the base again"
        )
    if found.dtype.is_floating_point and not bool(torch.isfinite(found).all()):
        raise UnsupportedModel(f"{name}{suffix} holds NaN or infinity: compress the base again")
    return found
