"""Resident forms of deltas as the C++ kernels read them: C structs that point into tensors.

Owns: the mirror of the structs in src/*.h and src/*.cpp, and what is rearranged when a linear is
staged. A staged value keeps every tensor alive that its struct points to.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import (
    Delta,
    DenseDelta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
)
from tsugiki_kernels.reference import StagedParts, stage_parts, unpack_codes

LANES = 16
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_I64, _I32, _F32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class SparsePart(ctypes.Structure):
    """src/sparse.h: SparsePart."""

    _fields_ = (
        ("offset", _I64),
        ("rows", _I64),
        ("kept", _I64),
        ("rows_per_mask", _I64),
        ("rows_per_step", _I64),
        ("code_stride", _I64),
        ("bits", _I32),
        ("by_row", _I32),
        ("zero", _F32),
        ("unused", _I32),
        ("columns", _PTR),
        ("codes", _PTR),
        ("step", _PTR),
        ("bias", _PTR),
    )


class SignPart(ctypes.Structure):
    """src/dot.h: SignPart."""

    _fields_ = (
        ("offset", _I64),
        ("rows", _I64),
        ("sign_stride", _I64),
        ("signs", _PTR),
        ("scale", _PTR),
        ("bias", _PTR),
    )


class DensePart(ctypes.Structure):
    """src/dot.cpp: DensePart."""

    _fields_ = (
        ("offset", _I64),
        ("rows", _I64),
        ("dtype", _I64),
        ("weight", _PTR),
        ("bias", _PTR),
    )


class LowRankPart(ctypes.Structure):
    """src/low_rank.cpp: LowRankPart."""

    _fields_ = (
        ("offset", _I64),
        ("rows", _I64),
        ("rank", _I64),
        ("dtype", _I64),
        ("scale", _F32),
        ("unused", _I32),
        ("a", _PTR),
        ("b", _PTR),
        ("bias", _PTR),
    )


@dataclass(frozen=True, slots=True, eq=False)
class CpuStaged:
    """One linear of one variant: `address` points to a C struct {count, parts[count]}."""

    kind: type[Delta]
    address: int
    inputs: int
    width: int  # outputs up to the end of the last part
    covered: int  # outputs that some part covers
    nbytes: int
    source: StagedParts  # the deltas as the reference reads them
    struct: ctypes.Array[ctypes.c_char]
    kept_alive: tuple[Tensor, ...]


def stage(parts: Sequence[Placed]) -> CpuStaged:
    """Check, rearrange where a kernel wants it, and build the C struct.

    Raises:
        BadArgument: see check.check_parts, or a tensor that is not on the CPU.
    """
    source = stage_parts([_rearranged(placed) for placed in parts])
    records, extra = zip(*map(_record, source.parts), strict=True)
    struct = _linear(records)
    kept = tuple(tensor for tensors in extra for tensor in tensors)
    ends = [placed.offset + placed.delta.shape[0] for placed in source.parts]
    return CpuStaged(
        kind=type(source.parts[0].delta),
        address=ctypes.addressof(struct),
        inputs=source.parts[0].delta.shape[1],
        width=max(ends),
        covered=sum(placed.delta.shape[0] for placed in source.parts),
        nbytes=source.nbytes + sum(t.nbytes for t in kept) + ctypes.sizeof(struct),
        source=source,
        struct=struct,
        kept_alive=kept,
    )


def _linear(records: Sequence[ctypes.Structure]) -> ctypes.Array[ctypes.c_char]:
    """struct {int64 count; Part parts[count];}"""
    content = _I64(len(records)), *records
    return ctypes.create_string_buffer(b"".join(map(bytes, content)))


def _record(placed: Placed) -> tuple[ctypes.Structure, list[Tensor]]:
    """The C struct of one part, and tensors made for it."""
    match placed.delta:
        case SparseDelta() as delta:
            return _sparse(placed.offset, delta)
        case SignDelta() as delta:
            return _sign(placed.offset, delta)
        case DenseDelta() as delta:
            return _dense(placed.offset, delta)
        case LowRankDelta() as delta:
            return _low_rank(placed.offset, delta)


def _rearranged(placed: Placed) -> Placed:
    """B transposed in memory: the kernel reads [rank, out]; the field keeps its meaning."""
    delta = placed.delta
    if not isinstance(delta, LowRankDelta) or delta.b.ndim != 2:
        return placed
    return replace(placed, delta=replace(delta, b=delta.b.T.contiguous().T))


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if tensor.device.type != "cpu":
        raise BadArgument(f"parts: the CPU kernels cannot read a tensor on {tensor.device}")
    return tensor.data_ptr()


def _sparse(offset: int, delta: SparseDelta) -> tuple[SparsePart, list[Tensor]]:
    by_row = delta.rows_per_mask % LANES != 0
    codes, extra = delta.codes, list[Tensor]()
    if by_row and delta.rows_per_mask != 1:
        codes = _codes_by_row(delta)
        extra = [codes]
    record = SparsePart(
        offset=offset,
        rows=delta.shape[0],
        kept=delta.columns.shape[1],
        rows_per_mask=delta.rows_per_mask,
        rows_per_step=delta.rows_per_step,
        code_stride=codes.shape[1],
        bits=delta.bits,
        by_row=int(by_row),
        zero=delta.zero,
        columns=_pointer(delta.columns),
        codes=_pointer(codes),
        step=_pointer(delta.step),
        bias=_pointer(delta.bias),
    )
    return record, extra


def _codes_by_row(delta: SparseDelta) -> Tensor:
    """uint8 [tiles * rows_per_mask, ceil(kept * bits / 8)]: each row's codes one after another."""
    tiles, kept = delta.columns.shape
    codes = unpack_codes(delta.codes, delta.bits, kept * delta.rows_per_mask)
    rows = codes.view(tiles, kept, delta.rows_per_mask).transpose(1, 2).flatten(0, 1)
    per_byte = 8 // delta.bits
    padded = torch.nn.functional.pad(rows.to(torch.uint8), (0, -kept % per_byte))
    shifts = torch.arange(0, 8, delta.bits, dtype=torch.uint8)
    packed: Tensor = (padded.view(len(rows), -1, per_byte) << shifts).sum(-1)
    return packed.to(torch.uint8)


def _sign(offset: int, delta: SignDelta) -> tuple[SignPart, list[Tensor]]:
    record = SignPart(
        offset=offset,
        rows=delta.shape[0],
        sign_stride=delta.signs.shape[1],
        signs=_pointer(delta.signs),
        scale=_pointer(delta.scale),
        bias=_pointer(delta.bias),
    )
    return record, []


def _dense(offset: int, delta: DenseDelta) -> tuple[DensePart, list[Tensor]]:
    record = DensePart(
        offset=offset,
        rows=delta.shape[0],
        dtype=0 if delta.weight is None else DTYPES[delta.weight.dtype],
        weight=_pointer(delta.weight),
        bias=_pointer(delta.bias),
    )
    return record, []


def _low_rank(offset: int, delta: LowRankDelta) -> tuple[LowRankPart, list[Tensor]]:
    record = LowRankPart(
        offset=offset,
        rows=delta.shape[0],
        rank=delta.a.shape[0],
        dtype=DTYPES[delta.a.dtype],
        scale=delta.scale,
        a=_pointer(delta.a),
        b=_pointer(delta.b),
        bias=_pointer(delta.bias),
    )
    return record, []
