"""DeltaDQ: seeded group-wise dropout of a delta, survivors rescaled and quantized to k bits.

Source: DeltaDQ (arXiv 2410.08666): group-wise dropout, uniform quantization, separation into parts.
Ours beside it: positions regenerated from a seed (no bytes), masks shared by a tile of rows, a
symmetric grid with least-squares steps, gain matching, a low-bit bias correction.
Does not know: files, bases, which kernel runs. Decoding is specified in docs/format.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked
from tsugiki.codecs.checks import check_finite, check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.deltadq_layout import (
    Layout,
    any_level,
    column_indices,
    gather_survivors,
    known_layout,
    layout_of,
    pack_codes,
    tiled,
    unpack_codes,
)
from tsugiki.codecs.masks import Masks, kept_columns
from tsugiki.codecs.options import choice, decimal, number, only, products_stay_finite
from tsugiki.codecs.quantize import (
    difference,
    matching_gain,
    mid_level,
    pack_bias,
    resident_bias,
    stored_bias,
    symmetric_codes,
    symmetric_steps,
)
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import SparseDelta

GRIDS = ("minmax", "symmetric")
SHAPING = frozenset(
    ("seed", "alpha", "bits", "grid", "group_size", "rows_per_mask", "rows_per_step", "parts")
)
STORED = SHAPING | {"zero", "gain", "bias_bits", "bias_scale"}
WANTED = SHAPING | {"bias_bits", "name", "gain_matching"}
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "alpha": 16,
    "bits": 1,
    "grid": "symmetric",
    "group_size": 64,
    "rows_per_mask": 16,
    "parts": 1,
    "bias_bits": 4,
}
LARGEST_ZERO = 2**20  # code - zero stays exact in float32
LEAST_ROWS_PER_STEP = 64  # steps of 16 rows take 3 % of a small file and fit it by 0.1 % better
COLUMNS = "columns"  # the part that prepare_lookup adds: shared, not the variant's own
RESIDENT_BITS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}  # what SparseDelta can hold


class DeltaDQ(DeltaCodec):
    """The codec. Stateless."""

    name = "deltadq"

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """Pack `tuned - base`; see `Codec.compress`. Options: DEFAULTS, `rows_per_step`,
        `gain_matching` (default: on the symmetric grid), `name`.

        Raises:
            CompressionRefused: an option or a shape that deltadq cannot carry.
        """
        only(options, WANTED, CompressionRefused)
        name = str(options.get("name", ""))
        delta = difference(base, tuned, name)
        wanted = _complete(options, delta.shape, with_bias=stats is not None)
        layout = layout_of(tuple(delta.shape), wanted, name, CompressionRefused)
        survivors = gather_survivors(delta, layout.mask)
        fit = _fit_minmax if wanted["grid"] == "minmax" else _fit_symmetric
        codes, stored, step = fit(survivors, layout)
        tensors = {**pack_codes(codes, layout), "step": step}
        packed = _packed(name, delta.shape, {**wanted, **stored}, tensors)
        if options.get("gain_matching", wanted["grid"] == "symmetric"):
            gain = stored["gain"] * matching_gain(_delta(packed), delta)
            packed = _packed(name, delta.shape, {**packed.options, "gain": decimal(gain)}, tensors)
        return packed if stats is None else _with_bias(packed, delta, stats)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, STORED)
        choice(options, "grid", GRIDS)
        number(options, "gain")
        number(options, "zero")
        layout = layout_of(shape, options)
        tiles, count = layout.mask.tiles, layout.codes_in_tile
        found: dict[str, Part] = {
            plane: (torch.uint8, (tiles, packing.packed_bytes(count, bits)))
            for plane, bits in layout.planes.items()
        }
        found["step"] = (torch.float16, (layout.steps,))
        if layout.bias_bits:
            number(options, "bias_scale")
            width = packing.packed_bytes(layout.mask.rows, layout.bias_bits)
            found["bias"] = (torch.uint8, (width,))
        return found

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        extremes = torch.tensor([0.0, 2.0 ** packed.options["bits"] - 1]) - packed.options["zero"]
        check_finite(_steps(packed)[:, None] * extremes, "step times code")

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`: no product of a step and a code can overflow."""
        zero, top = float(options["zero"]), (1 << int(options["bits"])) - 1
        return products_stay_finite(options["gain"], max(abs(zero), abs(top - zero)))

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        return Dense(base.float() + _delta(packed), stored_bias(packed))

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`: one kept column in each tile, with step 0."""
        columns = check_linear(shape, self.name)[1]
        options = {
            **DEFAULTS,
            "alpha": columns,
            "group_size": columns,
            "rows_per_step": shape[0],
            "bias_bits": 0,
            "zero": mid_level(1),
            "gain": 0.0,
        }
        tensors = {
            part: torch.zeros(size, dtype=dtype)
            for part, (dtype, size) in self.parts(shape, options).items()
        }
        return Packed(self.name, shape, options, tensors)

    def prepare_lookup(self, packed: Packed, masks: Masks) -> Packed:
        """See `Codec.prepare_lookup`: adds the kept columns as a part `columns`."""
        mask = _layout(packed).mask
        tensors = {**packed.tensors, COLUMNS: masks.columns(mask)}
        return replace(packed, tensors=tensors)

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`. `prepare_lookup` spares drawing the masks."""
        layout = _layout(packed)
        mask = layout.mask
        tiles, inverse = torch.unique(ids // mask.rows_per_mask, return_inverse=True)
        columns = packed.tensors.get(COLUMNS)
        if columns is None:
            drawn = torch.from_numpy(kept_columns(mask, tiles.numpy()).astype(np.int64))
        else:
            drawn = columns.view(torch.int16)[tiles].long() & 0xFFFF
        codes = unpack_codes(packed.tensors, layout, tiles)[inverse, :, ids % mask.rows_per_mask]
        step = _steps(packed)[ids // int(packed.options["rows_per_step"])]
        values = step[:, None] * (codes.float() - float(packed.options["zero"]))
        rows = torch.zeros(len(ids), mask.columns, device=ids.device)
        return rows.scatter_(1, drawn[inverse], values)

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`."""
        zero, live = float(packed.options["zero"]), _steps(packed) != 0
        if any_level(packed.tensors, _layout(packed), zero, live):
            return True
        bias = stored_bias(packed)
        return bias is not None and bool(bias.any())

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> SparseDelta:
        """See `Codec.resident`: planes merged and codes widened to 1, 2, 4 or 8 bits."""
        packed = part.packed
        layout = _layout(packed)
        mask = layout.mask
        bits = RESIDENT_BITS[layout.bits]
        if layout.parts == 1 and bits == layout.bits:
            codes = packed.tensors["codes"]
        else:
            codes = packing.pack(unpack_codes(packed.tensors, layout).flatten(1), bits)
        return SparseDelta(
            shape=(mask.rows, mask.columns),
            rows_per_mask=mask.rows_per_mask,
            rows_per_step=layout.rows_per_step,
            bits=bits,
            zero=float(packed.options["zero"]),
            gain=float(packed.options["gain"]),
            columns=masks.columns(mask),
            codes=codes,
            step=packed.tensors["step"],
            bias=resident_bias(part),
        )

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Masks of one row gather every column for every row: a rebuilt weight costs what 14 tokens
        do. Tiles: what 120 tokens do at alpha 16, 100 at alpha 8; too little is gained for bits
        that would depend on the chunk."""
        return None if packed_options["rows_per_mask"] >= 16 else 16


def _complete(options: Options, shape: torch.Size, *, with_bias: bool) -> dict[str, Any]:
    """The wanted options with defaults; a group never spans more than a row."""
    wanted = {**DEFAULTS, **{k: v for k, v in options.items() if k in STORED}}
    choice(wanted, "grid", GRIDS, CompressionRefused)
    if len(shape) == 2 and type(wanted["group_size"]) is int:
        wanted["group_size"] = min(wanted["group_size"], shape[1])
    if wanted["grid"] == "minmax":
        wanted["rows_per_step"] = shape[0]
    elif "rows_per_step" not in wanted:
        wanted["rows_per_step"] = max(LEAST_ROWS_PER_STEP, wanted["rows_per_mask"])
    if not with_bias:
        wanted["bias_bits"] = 0
    return wanted


def _packed(name: str, shape: torch.Size, options: Options, tensors: dict[str, Tensor]) -> Packed:
    return Packed("deltadq", tuple(shape), options, tensors, name)


def _fit_minmax(survivors: Tensor, layout: Layout) -> tuple[Tensor, dict[str, float], Tensor]:
    """The paper's quantizer: one step and one zero point for the tensor."""
    low, high = float(survivors.min()), float(survivors.max())
    step = (high - low) / (2**layout.bits - 1)
    if step <= abs(low) / LARGEST_ZERO:
        step = abs(low)  # all survivors are equal, or nearly: one code for all of them
    gain = decimal(step)
    zero = round(-low / gain) if gain else 0
    scaled = survivors / gain if gain else survivors
    codes = (scaled.round() + zero).clamp(0, 2**layout.bits - 1).to(torch.uint8)
    ones = torch.ones(layout.steps, dtype=torch.float16)
    return codes, {"gain": gain, "zero": float(zero)}, ones


def _fit_symmetric(survivors: Tensor, layout: Layout) -> tuple[Tensor, dict[str, float], Tensor]:
    """Least-squares steps, one for `rows_per_step` rows, stored relative to the largest."""
    size = layout.rows_per_step
    full = survivors.shape[0] // size * size
    fitted = [
        symmetric_steps(block, layout.bits)
        for block in (
            survivors[:full].reshape(full // size, size * survivors.shape[1]),
            survivors[full:].reshape(1, -1),
        )
        if block.numel()
    ]
    steps = torch.cat(fitted)
    gain = decimal(float(steps.max()))
    relative = (steps / gain).half() if gain else torch.zeros_like(steps).half()
    row_steps = (relative.float() * gain).repeat_interleave(size)[: survivors.shape[0], None]
    codes = symmetric_codes(survivors, row_steps, layout.bits)
    return codes, {"gain": gain, "zero": mid_level(layout.bits)}, relative


def _layout(packed: Packed) -> Layout:
    return known_layout(packed.shape, packed.options, packed.name)


def _steps(packed: Packed) -> Tensor:
    """float32 [steps]: stored step times gain, rounded once."""
    gain = torch.tensor(packed.options["gain"], dtype=torch.float32)
    return packed.tensors["step"].float() * gain


def _delta(packed: Packed) -> Tensor:
    """The dense delta, float32 [out, in]."""
    layout = _layout(packed)
    mask = layout.mask
    levels = unpack_codes(packed.tensors, layout).transpose(1, 2).float() - float(
        packed.options["zero"]
    )
    row_steps = _steps(packed).repeat_interleave(layout.rows_per_step)[: mask.rows]
    values = levels * tiled(row_steps[:, None], mask)
    dense = torch.zeros(mask.tiles, mask.rows_per_mask, mask.columns)
    dense.scatter_(2, column_indices(mask), values)
    return dense.view(-1, mask.columns)[: mask.rows]


def _with_bias(packed: Packed, delta: Tensor, stats: ModuleStats) -> Packed:
    """Add the mean output that the approximation loses: (D - D̂) E[x]."""
    bits = packed.options["bias_bits"]
    if not bits:
        return packed
    bias = pack_bias((delta - _delta(packed)) @ stats.mean.float(), bits)
    options = {**packed.options, "bias_scale": bias.scale}
    tensors = {**packed.tensors, "bias": bias.codes}
    return replace(packed, options=options, tensors=tensors)


CODEC = DeltaDQ()
