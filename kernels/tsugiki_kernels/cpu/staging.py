"""Resident forms of deltas as the C++ kernels read them: one extent that holds everything.

Owns: what is rearranged when linears are staged, and the records at the start of the extent, which
point into the rest of it and at shared columns. No torch object is kept for a part: a variant of
hundreds of small linears would weigh more in Python than in bytes.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from tsugiki_kernels.check_deltas import check_parts
from tsugiki_kernels.cpu.parts import RECORDS, by_row, record
from tsugiki_kernels.deltas import (
    CodebookDelta,
    Delta,
    DenseDelta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.formulas import own_tensors, unpack_codes, with_tensors
from tsugiki_kernels.interface import Allocate, StagedLinears
from tsugiki_kernels.reference import StagedParts

COUNT_BYTES = ctypes.sizeof(ctypes.c_int64)


@dataclass(frozen=True, slots=True, eq=False)
class CpuStaged:
    """One linear of one variant; at `address` is a C struct {int64 count; Part parts[count]}."""

    kind: type[Delta]
    address: int
    inputs: int
    width: int  # outputs up to the end of the last part
    has_bias: bool
    source: StagedParts | None  # for what the reference does: kinds without a kernel to rebuild
    kept_alive: tuple[Tensor, ...]  # the extent and the shared columns of all its linears


def stage_all(
    linears: Sequence[Sequence[Placed]], others: Sequence[Tensor], allocate: Allocate
) -> StagedLinears:
    """Check, rearrange where a kernel wants it, copy into one extent, and write the records.

    Raises:
        BadArgument: see check_deltas.check_parts and Extent.
    """
    for parts in linears:
        check_parts(parts)
    prepared = [[_rearranged(placed) for placed in parts] for parts in linears]
    own = chain.from_iterable(_tensors(placed) for parts in prepared for placed in parts)
    extent = Extent(chain(own, others), sum(map(_record_bytes, linears)), allocate)
    kept_alive = (extent.memory, *_shared(linears))  # one for all: they come and go together
    staged: list[CpuStaged] = []
    place = 0
    for parts in prepared:
        staged.append(_staged(parts, extent, place, kept_alive))
        place += _record_bytes(parts)
    return StagedLinears(tuple(staged), tuple(map(extent.moved, others)), extent.nbytes)


def _record_bytes(parts: Sequence[Placed]) -> int:
    return COUNT_BYTES + sum(ctypes.sizeof(RECORDS[type(placed.delta)]) for placed in parts)


def _rearranged(placed: Placed) -> Placed:
    """The delta with its tensors in the order in which a kernel reads them.

    Low rank: B transposed in memory, [rank, out]. Sparse whose tiles are no whole vectors: each
    row's codes one after another, [tiles * rows_per_mask, ceil(kept * bits / 8)].
    """
    delta = placed.delta
    if isinstance(delta, LowRankDelta):
        return replace(placed, delta=replace(delta, b=delta.b.T.contiguous().T))
    if isinstance(delta, SparseDelta) and by_row(delta) and delta.rows_per_mask != 1:
        return replace(placed, delta=replace(delta, codes=_codes_by_row(delta)))
    return placed


def _codes_by_row(delta: SparseDelta) -> Tensor:
    tiles, kept = delta.columns.shape
    codes = unpack_codes(delta.codes, delta.bits, kept * delta.rows_per_mask)
    rows = codes.view(tiles, kept, delta.rows_per_mask).transpose(1, 2).flatten(0, 1)
    per_byte = 8 // delta.bits
    padded = torch.nn.functional.pad(rows.to(torch.uint8), (0, -kept % per_byte))
    shifts = torch.arange(0, 8, delta.bits, dtype=torch.uint8)
    packed: Tensor = (padded.view(len(rows), -1, per_byte) << shifts).sum(-1)
    return packed.to(torch.uint8)


def _tensors(placed: Placed) -> Iterator[Tensor]:
    """What the extent must hold of a part. Spelt out: this runs for hundreds of parts a load."""
    delta = placed.delta
    if isinstance(delta.bias, Tensor):
        yield delta.bias
    elif delta.bias is not None:
        yield delta.bias.codes
    match delta:
        case SparseDelta():
            yield from (delta.codes, delta.step)
        case SignDelta():
            yield from (delta.signs, delta.scale)
        case LowRankDelta():
            yield from (delta.a, delta.b.T)
        case DenseDelta(weight=Tensor() as weight):
            yield weight
        case CodebookDelta():
            yield delta.values
            if delta.step is not None:
                yield delta.step
        case TensorTrainDelta():
            yield from (delta.cores, delta.row_start, delta.column, delta.value, delta.step)


def _shared(linears: Sequence[Sequence[Placed]]) -> Iterator[Tensor]:
    """What records point to outside the extent."""
    for placed in chain.from_iterable(linears):
        match placed.delta:
            case SparseDelta(columns=columns):
                yield columns
            case CodebookDelta(index=index):
                yield index.codes


def _staged(
    parts: Sequence[Placed], extent: Extent, place: int, kept_alive: tuple[Tensor, ...]
) -> CpuStaged:
    """Write the struct of one linear at `place` of the extent."""
    first = parts[0].delta
    found = [record(placed, extent) for placed in parts]
    content = b"".join((ctypes.c_int64(len(found)), *found))
    extent.write(place, content)
    width = max(placed.offset + placed.delta.shape[0] for placed in parts)
    return CpuStaged(
        kind=type(first),
        address=extent.address + place,
        inputs=first.shape[1],
        width=width,
        has_bias=any(placed.delta.bias is not None for placed in parts),
        source=_source(parts, extent),
        kept_alive=kept_alive,
    )


def _source(parts: Sequence[Placed], extent: Extent) -> StagedParts | None:
    if isinstance(parts[0].delta, SparseDelta | SignDelta):
        return None
    return StagedParts(tuple(replace(p, delta=_in_extent(p.delta, extent)) for p in parts))


def _in_extent(delta: Delta, extent: Extent) -> Delta:
    moved = {
        name: extent.moved(tensor) if tensor.is_contiguous() else extent.moved(tensor.T).T
        for name, tensor in own_tensors(delta).items()
    }
    return with_tensors(delta, moved)
