"""The forms of deltas that have kernels: where their packing and their launches are.

Owns: this table, and what packing and launches of all forms have in common. A delta without a form
(dense) is computed by the formulas, on the GPU too.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsugiki_kernels.cuda import low_rank, records, sign
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import Delta, LowRankDelta, SignDelta

Apply = Callable[[Launcher, Tensor, Tensor, WorkList, Tensor, Tensor], None]
Rebuild = Callable[[Launcher, Tensor, ResidentPart, Tensor], None]


@dataclass(frozen=True, slots=True)
class Packing:
    """A delta as its kernels read it, not yet on the device."""

    tensors: tuple[Tensor, ...]
    # of the offset of the part, the addresses of these tensors on the device, the bias
    record: Callable[[int, Sequence[int], records.Bias], ctypes.Structure]


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What is needed to keep and to use deltas of one form; compared by identity."""

    record_type: type[ctypes.Structure]
    pack: Callable[[Any], Packing]  # of a delta in host memory
    resident: Callable[[Any, int, int], ResidentPart]  # of delta, offset, address of the record
    apply: Apply
    rebuild: Rebuild | None  # None: its codecs never ask for a dense weight


def form_of(delta: Delta) -> Form | None:
    """The form that this delta takes on a GPU."""
    match delta:
        case LowRankDelta():
            return LOW_RANK
        case SignDelta():
            return SIGN
        case _:
            return None


def _pack_low_rank(delta: LowRankDelta) -> Packing:
    return Packing(
        low_rank.pack(delta),
        lambda offset, at, bias: low_rank.record(delta, offset, at[0], at[1], bias),
    )


def _pack_sign(delta: SignDelta) -> Packing:
    return Packing(
        sign.pack(delta), lambda offset, at, bias: sign.record(delta, offset, at[0], at[1], bias)
    )


LOW_RANK = Form(
    records.LowRankPart, _pack_low_rank, low_rank.resident, low_rank.apply, rebuild=None
)
SIGN = Form(records.SignPart, _pack_sign, sign.resident, sign.apply, sign.reconstruct)
