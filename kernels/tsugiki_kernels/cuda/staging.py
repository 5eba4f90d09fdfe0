"""Resident forms of deltas on the GPU: one extent of device memory holds everything of a variant.

Owns: which kinds have kernels, what each of them wants packed, and the records at the start of the
extent, which point into the rest of it. Arithmetic and packing are the operations' own
(low_rank.py, sign.py, sparse.py). A kind without kernels stays as it is, for the formulas.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import Tensor

from tsugiki_kernels.check import check_parts
from tsugiki_kernels.cuda import low_rank, records
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.cuda.work_list import ResidentPart
from tsugiki_kernels.deltas import Bias, CodedBias, Delta, LowRankDelta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.formulas import own_tensors, with_tensors
from tsugiki_kernels.interface import Staged, StagedLinears
from tsugiki_kernels.reference import StagedParts

ALIGNMENT = 16  # of every tensor: the widest load of a thread


@dataclass(frozen=True, slots=True)
class PlacedBias:
    """A bias on the device and the outputs it belongs to."""

    offset: int
    rows: int
    bias: Bias


@dataclass(frozen=True, slots=True, eq=False)
class CudaStaged:
    """One linear of one variant on the device."""

    kind: type[Delta]
    parts: tuple[ResidentPart, ...]  # for kernels; empty where the formulas compute
    source: StagedParts  # what the formulas read; of a kind with kernels it has no parts
    biases: tuple[PlacedBias, ...]
    kept_alive: Tensor  # the extent


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A part before it is copied: its tensors as they will lie."""

    placed: Placed
    packed: tuple[Tensor, ...]  # empty: no kernels

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What the extent must hold."""
        bias = self.placed.delta.bias
        if self.packed:
            yield from self.packed
            if bias is not None:
                yield _bias_tensor(bias)
        else:
            yield from own_tensors(self.placed.delta).values()


def stage_all(
    linears: Sequence[Sequence[Placed]], others: Sequence[Tensor], uploader: Uploader
) -> StagedLinears:
    """Check, pack, copy into one extent on the device with the records in front.

    Raises:
        BadArgument: see check.check_parts and Extent.
    """
    for parts in linears:
        check_parts(parts)
    prepared = [[_prepared(placed) for placed in parts] for parts in linears]
    own = chain.from_iterable(part.tensors for parts in prepared for part in parts)
    head = sum(_record_bytes(part) for parts in prepared for part in parts)
    with uploader:
        extent = Extent(chain(own, others), head, uploader.buffer, ALIGNMENT)
        target = uploader.target(extent.nbytes)
        there = extent.at(target)
        place = 0
        staged: list[CudaStaged] = []
        for linear in prepared:
            resident: list[ResidentPart] = []
            for part in linear:
                resident += _written(part, extent, there, place)
                place += _record_bytes(part)
            staged.append(_staged(linear, resident, there))
        uploader.upload(extent.memory, target)
    return StagedLinears(tuple(staged), tuple(map(there.moved, others)), extent.nbytes)


def own(staged: Staged) -> CudaStaged:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    if not isinstance(staged, CudaStaged):
        raise BadArgument(f"staged: made by another backend ({type(staged).__name__})")
    return staged


def _prepared(placed: Placed) -> _Prepared:
    match placed.delta:
        case LowRankDelta() as delta:
            return _Prepared(placed, low_rank.pack(delta))
        case _:
            return _Prepared(placed, ())


def _record_bytes(part: _Prepared) -> int:
    """A multiple of ALIGNMENT, as records are read like everything else."""
    match part.placed.delta:
        case LowRankDelta():
            size = ctypes.sizeof(records.LowRankPart)
        case _:
            size = 0
    return -(-size // ALIGNMENT) * ALIGNMENT


def _written(part: _Prepared, extent: Extent, there: Extent, place: int) -> Sequence[ResidentPart]:
    """Write the record of a part at `place` of the extent, with addresses of the device."""
    offset = part.placed.offset
    bias = _bias_record(part.placed.delta.bias, there)
    match part.placed.delta:
        case LowRankDelta() as delta:
            a, b = map(there.address_of, part.packed)
            extent.write(place, bytes(low_rank.record(delta, offset, a, b, bias)))
            return [low_rank.resident(delta, offset, there.address + place)]
        case _:
            return []


def _staged(
    parts: Sequence[_Prepared], resident: Sequence[ResidentPart], there: Extent
) -> CudaStaged:
    plain = () if resident else tuple(_moved(part.placed, there) for part in parts)
    biases = tuple(
        PlacedBias(part.placed.offset, part.placed.delta.shape[0], _moved_bias(bias, there))
        for part in parts
        if (bias := part.placed.delta.bias) is not None
    )
    kind = type(parts[0].placed.delta)
    return CudaStaged(kind, tuple(resident), StagedParts(plain), biases, there.memory)


def _moved(placed: Placed, there: Extent) -> Placed:
    tensors = own_tensors(placed.delta)
    moved = {name: there.moved(tensor) for name, tensor in tensors.items()}
    return replace(placed, delta=with_tensors(placed.delta, moved))


def _bias_tensor(bias: Bias) -> Tensor:
    return bias.codes if isinstance(bias, CodedBias) else bias


def _moved_bias(bias: Bias, there: Extent) -> Bias:
    if isinstance(bias, CodedBias):
        return replace(bias, codes=there.moved(bias.codes))
    return there.moved(bias)


def _bias_record(bias: Bias | None, there: Extent) -> records.Bias:
    if bias is None:
        return records.Bias()
    address = there.address_of(_bias_tensor(bias))
    if isinstance(bias, CodedBias):
        return records.Bias(address, bias.scale, bias.bits)
    return records.Bias(address, 1.0, records.PLAIN_BITS)
