"""Resident forms of deltas on the GPU: one extent of device memory holds everything of a variant.

Owns: the layout of the extent, and the records at its start, which point into the rest of it.
Packing is each form's own (kinds.py). A delta without a form stays as it is, for the formulas.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import Tensor

from tsugiki_kernels.check import check_own, check_parts
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.kinds import Form, Packing, form_of
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.cuda.work_list import ResidentPart
from tsugiki_kernels.deltas import Bias, CodedBias, Delta, Placed, SparseDelta
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.formulas import own_tensors, with_tensors
from tsugiki_kernels.interface import Staged, StagedLinears
from tsugiki_kernels.reference import StagedParts

ALIGNMENT = 16  # of every tensor and record: the widest load of a thread


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
    parts: tuple[tuple[Form, ResidentPart], ...]  # what kernels compute
    source: StagedParts  # what the formulas compute: the other parts
    biases: tuple[PlacedBias, ...]
    kept_alive: tuple[Tensor, ...]  # the extent, and columns that it shares with others

    def of(self, form: Form) -> list[ResidentPart]:
        """Its parts of this form."""
        return [part for own, part in self.parts if own is form]


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
        BadArgument: see check.check_parts and Extent.
    """
    for parts in linears:
        check_parts(parts)
    prepared = [[_prepared(placed) for placed in parts] for parts in linears]
    every = list(chain.from_iterable(prepared))
    head = sum(part.record_bytes for part in every)
    tensors = chain(chain.from_iterable(part.tensors for part in every), others)
    with uploader:
        extent = Extent(tensors, head, uploader.buffer, ALIGNMENT)
        there = extent.at(uploader.target(extent.nbytes))
        place = 0
        staged: list[CudaStaged] = []
        for linear in prepared:
            resident: list[tuple[Form, ResidentPart]] = []
            for part in linear:
                resident += _written(part, extent, there, place)
                place += part.record_bytes
            staged.append(_staged(linear, tuple(resident), there))
        uploader.upload(extent.memory, there.memory)
    return StagedLinears(tuple(staged), tuple(map(there.moved, others)), extent.nbytes)


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
    part: _Prepared, extent: Extent, there: Extent, place: int
) -> list[tuple[Form, ResidentPart]]:
    """Write the record of a part at `place` of the extent, with addresses of the device."""
    if part.form is None or part.packing is None:
        return []
    offset, delta = part.placed.offset, part.placed.delta
    addresses = [there.address_of(tensor) for tensor in part.packing.tensors]
    record = part.packing.record(offset, addresses, _bias_record(delta.bias, there))
    extent.write(place, bytes(record))
    return [(part.form, part.form.resident(delta, offset, there.address + place))]


def _staged(
    parts: Sequence[_Prepared], resident: tuple[tuple[Form, ResidentPart], ...], there: Extent
) -> CudaStaged:
    deltas = [part.placed.delta for part in parts]
    columns = [delta.columns for delta in deltas if isinstance(delta, SparseDelta)]
    return CudaStaged(
        kind=type(deltas[0]),
        parts=resident,
        source=StagedParts(tuple(_moved(p.placed, there) for p in parts if p.form is None)),
        biases=tuple(
            PlacedBias(part.placed.offset, delta.shape[0], _moved_bias(delta.bias, there))
            for part, delta in zip(parts, deltas, strict=True)
            if delta.bias is not None
        ),
        kept_alive=(there.memory, *columns),
    )


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
