"""Calls of a linear on the lattice (src/lattice.cpp): argument checks and the C structs.

Owns: the tables that the kernel reads, and the record of a base's weight. Knows nothing of the
arithmetic, nor of variants (staging.py).
"""

import ctypes
from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from tsugiki_kernels.check_weights import check_lattice_weight
from tsugiki_kernels.cpu.compressed import checked
from tsugiki_kernels.cpu.deltas import activations
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import Activations, Fields
from tsugiki_kernels.hadamard import paley, signs
from tsugiki_kernels.interface import Span
from tsugiki_kernels.lattice import (
    RESIDUAL_FACTOR,
    LatticeWeight,
    e8_ball,
    e8p_magnitudes,
)

_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
_LINEAR, _APPLY = "tsugiki_lattice_linear", "tsugiki_low_rank_apply"


class Rotation(ctypes.Structure):
    """src/rotation.h: Rotation."""

    _fields_: ClassVar[Fields] = (
        ("signs", _PTR),
        ("matrix", _PTR),
        ("width", _I64),
        ("order", _I32),
        ("power", _I32),
    )


class Stage(ctypes.Structure):
    """src/lattice.cpp: Stage."""

    _fields_: ClassVar[Fields] = (
        ("codes", _PTR),
        ("words", _PTR),
        ("factor", ctypes.c_float),
        ("wide", _I32),
    )


class LatticeLinear(ctypes.Structure):
    """src/lattice.cpp: LatticeLinear."""

    _fields_: ClassVar[Fields] = (
        ("step", Activations),
        ("spans", _PTR),
        ("span_count", _I64),
        ("outputs", _I64),
        ("scales", _PTR),
        ("bias", _PTR),
        ("rotation", Rotation),
        ("stages", Stage * 2),
        ("stage_count", _I64),
        ("deltas", _PTR),
    )


def linear(
    x: Tensor,
    weight: LatticeWeight,
    bias: Tensor | None,
    out: Tensor,
    spans: Sequence[Span] | None,
) -> Operation:
    """See ReadsLattices.linear_lattice.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_lattice_weight(weight)
    spans, plain = checked(x, bias, out, spans, weight.shape, codes=weight.codes)
    flat = array("q", chain.from_iterable(spans))
    rotation, turned = _rotation(weight)
    call = LatticeLinear(
        Activations(*activations(x, out)),
        flat.buffer_info()[0],
        len(spans),
        weight.shape[0],
        weight.scales.data_ptr(),
        None if plain is None else plain.data_ptr(),
        rotation,
        _stages(weight),
        1 if weight.residual is None else 2,
        None,
    )
    return Operation(_LINEAR, call, kept=(x, out, weight, plain, flat, turned, _tables()))


def changed(base: Operation, delta: Operation) -> Operation | None:
    """A linear on the lattice and the factors that are added to its output next, as one operation
    with the same bits; None: the second does not follow the first in this way."""
    if (base.function, delta.function) != (_LINEAR, _APPLY) or base.arguments.deltas is not None:
        return None
    linear, deltas = base.arguments, delta.arguments
    if (linear.step.out, linear.step.out_stride) != (deltas.out, deltas.out_stride):
        return None
    both = LatticeLinear.from_buffer_copy(linear)
    both.deltas = ctypes.addressof(deltas)
    return Operation(_LINEAR, both, kept=(base.kept, delta.kept, deltas))


def _rotation(weight: LatticeWeight) -> tuple[Rotation, tuple[Tensor, Tensor]]:
    """The record, and what it points to."""
    found = weight.rotation
    own = signs(found.width), paley(found.order)
    at = own[0].data_ptr(), own[1].data_ptr()
    return Rotation(*at, found.width, found.order, 1 << found.doublings), own


def _stages(weight: LatticeWeight) -> ctypes.Array[Stage]:
    words, ball = _tables()
    stages = (Stage * 2)(Stage(weight.codes.data_ptr(), words.data_ptr(), 1.0, 1))
    if weight.residual is not None:
        wide = weight.bits == 4
        table, factor = words if wide else ball, 1.0 / RESIDUAL_FACTOR[weight.bits]
        stages[1] = Stage(weight.residual.data_ptr(), table.data_ptr(), factor, int(wide))
    return stages


@lru_cache(maxsize=1)
def _tables() -> tuple[Tensor, Tensor]:
    """float32 [256, 8] each: E8P's magnitudes, the last one negative where their sum is odd, so
    that the eighth sign is the parity of the other seven; and the points of the small ball."""
    words = e8p_magnitudes().clone()
    odd = (words.sum(1).int() & 1).bool()
    words[:, -1] = torch.where(odd, -words[:, -1], words[:, -1])
    return words, e8_ball().contiguous()
