"""The forms of deltas that have kernels: where their packing and their launches are.

Owns: this table, and what packing and launches of all forms have in common. A delta without a form
(dense) is computed by the formulas, on the GPU too.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tsugiki_kernels.cuda import codebooks, low_rank, records, sign, sparse, tensor_train
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.sparse_forms import in_tiles
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import (
    CodebookDelta,
    Delta,
    LowRankDelta,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)

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
    rebuild: Rebuild


def form_of(kind: type[Delta]) -> Form | None:
    """The form that deltas of this kind take on a GPU."""
    return _FORMS.get(kind)


def _pack_low_rank(delta: LowRankDelta) -> Packing:
    return Packing(
        low_rank.pack(delta),
        lambda offset, at, bias: low_rank.record(delta, offset, at[0], at[1], bias),
    )


def _pack_sign(delta: SignDelta) -> Packing:
    return Packing(
        sign.pack(delta), lambda offset, at, bias: sign.record(delta, offset, at[0], at[1], bias)
    )


def _pack_codebooks(delta: CodebookDelta) -> Packing:
    return Packing(
        codebooks.pack(delta), lambda offset, at, bias: codebooks.record(delta, offset, at, bias)
    )


def _pack_sparse(delta: SparseDelta) -> Packing:
    """Tiles read the kept columns where they are, for other variants share them; their codes are
    packed there too, which a GPU does in no time. Rows have places of their own, packed on the
    host."""
    if in_tiles(delta):
        near = replace(delta, codes=delta.codes.to(delta.columns.device))
        packed = tuple(tensor.cpu() for tensor in sparse.pack(near))
        return Packing(packed, lambda offset, at, bias: sparse.record(delta, offset, at, bias))
    kept = replace(delta, columns=delta.columns.cpu())
    return Packing(
        sparse.pack(kept), lambda offset, at, bias: sparse.record(kept, offset, at, bias)
    )


def _pack_tensor_train(delta: TensorTrainDelta) -> Packing:
    return Packing(
        tensor_train.pack(delta),
        lambda offset, at, bias: tensor_train.record(delta, offset, at, bias),
    )


LOW_RANK = Form(
    records.LowRankPart,
    _pack_low_rank,
    low_rank.resident,
    low_rank.apply,
    low_rank.reconstruct,
)
SIGN = Form(records.SignPart, _pack_sign, sign.resident, sign.apply, sign.reconstruct)
SPARSE = Form(records.SparsePart, _pack_sparse, sparse.resident, sparse.apply, sparse.reconstruct)
CODEBOOKS = Form(
    records.CodebookPart,
    _pack_codebooks,
    codebooks.resident,
    codebooks.apply,
    codebooks.reconstruct,
)
TENSOR_TRAIN = Form(
    records.TensorTrainPart,
    _pack_tensor_train,
    tensor_train.resident,
    tensor_train.apply,
    tensor_train.reconstruct,
)
_FORMS: dict[type[Delta], Form] = {
    LowRankDelta: LOW_RANK,
    SignDelta: SIGN,
    SparseDelta: SPARSE,
    CodebookDelta: CODEBOOKS,
    TensorTrainDelta: TENSOR_TRAIN,
}
