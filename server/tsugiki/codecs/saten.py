"""Saten: a tensor train and a sparse part beside it.

Source: Saten (arXiv 2505.14871): the train by TT-SVD, of what it leaves the largest entries, free
or two of every four. Ours: trains of any modes and orders (saten_train.py), places in few bits
(saten_sparse.py), values of both parts at 16, 8 or 4 bits.
Does not know: files, bases, which kernel runs, how ranks and densities are shared out.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tsugiki.codecs import saten_values
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked
from tsugiki.codecs.checks import check_finite, check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.masks import Masks
from tsugiki.codecs.quantize import mid_level
from tsugiki.codecs.saten_fit import fit
from tsugiki.codecs.saten_form import (
    NAME,
    SparseForm,
    entries_of,
    places_of,
    rows_of,
    sparse_form,
    stored_parts,
    train_of,
)
from tsugiki.codecs.saten_train import stages
from tsugiki_kernels.deltas import TensorTrainDelta

ROW_START, COLUMN, VALUE = "row_start", "column", "value"  # parts that prepare_lookup adds


class Saten(DeltaCodec):
    """The codec. Stateless."""

    name = NAME

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """See `Codec.compress` and saten_fit.py, which knows the options."""
        return fit(base, tuned, stats, options)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        return stored_parts(shape, options)

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        for core in train_of(packed).cores:
            check_finite(core, "cores times gain")
        check_finite(entries_of(packed)[1], "values times gain")

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`: places are what a header cannot vouch for."""
        return False

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        change = train_of(packed).dense() if packed.options["modes"] else torch.zeros(packed.shape)
        places, values = entries_of(packed)
        change.view(-1)[places] += values
        return Dense(base.float() + change)

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`: neither part."""
        check_linear(shape, self.name)
        return Packed(self.name, shape, {"modes": "", "pattern": "none"}, {})

    def prepare_lookup(self, packed: Packed, masks: Masks) -> Packed:
        """See `Codec.prepare_lookup`: adds the sparse part, row by row."""
        return _with_rows(packed)

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`. `prepare_lookup` spares reading all places."""
        known = packed if ROW_START in packed.tensors else _with_rows(packed)
        start, column, value = (known.tensors[part] for part in (ROW_START, COLUMN, VALUE))
        found = torch.zeros(len(ids), packed.shape[1])
        if packed.options["modes"]:
            found = train_of(packed).rows(ids)
        counts = start[ids + 1] - start[ids]
        row = torch.arange(len(ids)).repeat_interleave(counts)
        before = (counts.cumsum(0) - counts).repeat_interleave(counts)
        place = start[ids].repeat_interleave(counts) + torch.arange(len(row)) - before
        found[row, column[place].long()] += value[place]
        return found

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`."""
        return bool(self.effective(torch.zeros(packed.shape), packed).weight.any())

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> TensorTrainDelta:
        """See `Codec.resident`: cores in the dtype of activations, in the order in which they are
        met; of the sparse part a column and a value for each entry, codes a byte each."""
        packed = part.packed
        train, rows = train_of(packed), packed.shape[0]
        met, cores = stages(train) if train.cores else ((), torch.empty(0))
        form = sparse_form(packed.shape, packed.options)
        start, column = rows_of(places_of(packed), packed.shape)
        coded = form.pattern != "none" and form.bits != 16
        return TensorTrainDelta(
            shape=(packed.shape[0], packed.shape[1]),
            stages=met,
            cores=cores.to(dtype),
            rows_per_step=form.rows_per_step if coded else rows,
            zero=mid_level(form.bits) if coded else 0.0,
            gain=float(packed.options.get("value_gain", 1.0)),
            row_start=start,
            column=column,
            value=_resident_values(packed, form),
            step=packed.tensors["value_steps"] if coded else torch.ones(1).half(),
            bias=part.bias,
        )

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Never: see docs/codecs.md."""
        return None


def _with_rows(packed: Packed) -> Packed:
    """With the sparse part row by row beside what is stored."""
    places, values = entries_of(packed)
    start, column = rows_of(places, packed.shape)
    added = {ROW_START: start, COLUMN: column, VALUE: values}
    return replace(packed, tensors={**packed.tensors, **added})


def _resident_values(packed: Packed, form: SparseForm) -> Tensor:
    if form.pattern == "none":
        return torch.empty(0, dtype=torch.float16)
    if form.bits == 16:
        return packed.tensors["values"]
    return saten_values.codes(packed.tensors["values"], form.bits, form.kept)


CODEC = Saten()
