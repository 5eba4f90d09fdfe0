"""Resident forms of deltas on the GPU: one extent of device memory holds everything of a variant.

Owns: the layout of the extent, and the records at its start, which point into the rest of it.
Where it lies, and where it goes, is region.py's; packing is each form's own (kinds.py). A delta
without a form stays as it is, for the formulas.
"""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from tsugiki_kernels.check import check_own
from tsugiki_kernels.check_deltas import check_parts
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.kinds import Form, Packing, form_of
from tsugiki_kernels.cuda.region import Region
from tsugiki_kernels.cuda.sparse_forms import in_tiles
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.cuda.work_list import ResidentPart
from tsugiki_kernels.deltas import Bias, CodebookDelta, CodedBias, Delta, Placed, SparseDelta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.formulas import own_tensors, with_tensors
from tsugiki_kernels.interface import Staged, StagedLinears
from tsugiki_kernels.reference import StagedParts

WORD = 8  # bytes of an address
ALIGNMENT = 16  # of every tensor and record: the widest load of a thread


@dataclass(frozen=True, slots=True)
class PlacedBias:
    """A bias on the device and the outputs it belongs to."""

    offset: int
    rows: int
    bias: Bias


@dataclass(frozen=True, slots=True, eq=False)
class CudaStaged:
    """One linear of one variant on the device. Its tensors follow its region (region.py)."""

    kind: type[Delta]
    parts: tuple[tuple[Form, ResidentPart], ...]  # what kernels compute; records from 0 on
    source: StagedParts  # what the formulas compute: the other parts
    biases: tuple[PlacedBias, ...]
    region: Region
    shared: tuple[Tensor, ...]  # kept alive: kept columns, index maps

    def of(self, form: Form) -> list[ResidentPart]:
        """Its parts of this form, their records where they are now."""
        begin = self.region.address
        return [replace(p, record=begin + p.record) for own, p in self.parts if own is form]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A part before it is copied."""

    placed: Placed
    form: Form | None
    packing: Packing | None

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What the extent must hold."""
        bias = self.placed.delta.bias
        if self.packing is None:
            yield from own_tensors(self.placed.delta).values()
            return
        yield from self.packing.tensors
        if bias is not None:
            yield _bias_tensor(bias)

    @property
    def record_bytes(self) -> int:
        """A multiple of ALIGNMENT."""
        size = 0 if self.form is None else ctypes.sizeof(self.form.record_type)
        return -(-size // ALIGNMENT) * ALIGNMENT


def stage_all(
    linears: Sequence[Sequence[Placed]], others: Sequence[Tensor], uploader: Uploader
) -> StagedLinears:
    """Check, pack, copy into one extent on the device with the records in front.

    Raises:
        BadArgument: see check_deltas.check_parts and Extent.
    """
    with uploader:  # from the first look at kept columns on: they may not move meanwhile
        for parts in linears:
            check_parts(parts)
        with uploader.beside_steps():
            prepared = [[_prepared(placed) for placed in parts] for parts in linears]
        every = list(chain.from_iterable(prepared))
        head = sum(part.record_bytes for part in every)
        tensors = chain(chain.from_iterable(part.tensors for part in every), others)
        extent = Extent(tensors, head, uploader.buffer, ALIGNMENT)
        region = uploader.target(extent.nbytes)
        there = extent.at(region.memory(), region.follow)
        places = accumulate((part.record_bytes for part in every), initial=0)
        staged = [
            _staged(linear, _written(linear, extent, there, places), there, region)
            for linear in prepared
        ]
        region.has_records(extent.words(head), _pointers(every))
        uploader.upload(extent.memory, there.memory)
        return StagedLinears(tuple(staged), tuple(map(there.moved, others)), region.nbytes)


def own(staged: Staged) -> CudaStaged:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    return check_own("staged", staged, CudaStaged)


def _prepared(placed: Placed) -> _Prepared:
    form = form_of(type(placed.delta))
    return _Prepared(placed, form, None if form is None else form.pack(placed.delta))


def _written(
    parts: Sequence[_Prepared], extent: Extent, there: Extent, places: Iterator[int]
) -> tuple[tuple[Form, ResidentPart], ...]:
    """Write the record of each part at its place of the extent, with addresses of the device."""
    resident: list[tuple[Form, ResidentPart]] = []
    for part, place in zip(parts, places, strict=False):  # parts first: it takes no place more
        if part.form is None or part.packing is None:
            continue
        offset, delta = part.placed.offset, part.placed.delta
        addresses = [there.address_of(tensor) for tensor in part.packing.tensors]
        record = part.packing.record(offset, addresses, _bias_record(delta.bias, there))
        extent.write(place, bytes(record))
        resident.append((part.form, part.form.resident(delta, offset, place)))
    return tuple(resident)


def _pointers(parts: Iterable[_Prepared]) -> Tensor:
    """int64: which words of the records at the start of an extent are addresses."""
    words: list[int] = []
    begin = 0
    for part in parts:
        if part.form is not None:
            words += [begin + word for word in records.pointer_words(part.form.record_type)]
        begin += part.record_bytes // WORD
    return torch.tensor(words, dtype=torch.int64)


def _staged(
    parts: Sequence[_Prepared],
    resident: tuple[tuple[Form, ResidentPart], ...],
    there: Extent,
    region: Region,
) -> CudaStaged:
    deltas = [part.placed.delta for part in parts]
    return CudaStaged(
        kind=type(deltas[0]),
        parts=resident,
        source=StagedParts(tuple(_moved(p.placed, there) for p in parts if p.form is None)),
        biases=tuple(
            PlacedBias(part.placed.offset, delta.shape[0], _moved_bias(delta.bias, there))
            for part, delta in zip(parts, deltas, strict=True)
            if delta.bias is not None
        ),
        region=region,
        shared=tuple(_shared(deltas, there.memory.device)),
    )


def _shared(deltas: Iterable[Delta], place: torch.device) -> Iterator[Tensor]:
    """What records point at outside the extent.

    Raises:
        BadArgument: it is not on the device.
    """
    for delta in deltas:
        match delta:
            case SparseDelta(columns=tensor) if in_tiles(delta):
                name = "columns"
            case CodebookDelta(index=index):
                name, tensor = "codes", index.codes
            case _:
                continue
        if tensor.device != place:
            raise BadArgument(
                f"{name}: on {tensor.device}; kernels read them where they are, on {place}"
            )
        yield tensor


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
