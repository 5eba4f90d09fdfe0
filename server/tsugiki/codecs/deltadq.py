"""DeltaDQ: seeded group-wise dropout of a delta, survivors rescaled and quantized to k bits.

Source: DeltaDQ (arXiv 2410.08666): group-wise dropout, uniform quantization, separation into parts.
Ours beside it: positions regenerated from a seed (no bytes), masks shared by a tile of rows, a
symmetric grid with least-squares steps, gain matching, a low-bit bias correction.
Does not know: files, bases, which kernel runs. Decoding is specified in docs/format.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked, Role
from tsugiki.codecs.checks import check_finite, check_linear, check_parts
from tsugiki.codecs.masks import MAX_COLUMNS, Mask, MaskCache, kept_columns
from tsugiki.codecs.options import bias_bits, choice, decimal, integer, number, only
from tsugiki.codecs.quantize import (
    difference,
    matching_gain,
    mid_level,
    pack_bias,
    symmetric_codes,
    symmetric_steps,
    unpack_bias,
)
from tsugiki.errors import CompressionRefused, InvalidArtifact, UserError
from tsugiki_kernels.interface import KernelBackend, Placed, Span, SparseDelta, Staged

GRIDS = ("minmax", "symmetric")
LAYOUT = frozenset(
    ("seed", "alpha", "bits", "grid", "group_size", "rows_per_mask", "rows_per_step", "parts")
)
STORED = LAYOUT | {"zero", "gain", "bias_bits", "bias_scale"}
WANTED = LAYOUT | {"bias_bits", "name", "gain_matching"}
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "alpha": 16,
    "bits": 1,
    "grid": "symmetric",
    "group_size": 64,
    "rows_per_mask": 16,
    "parts": 1,
    "bias_bits": 6,
}
LEAST_ROWS_PER_STEP = 16  # a float16 step every 16 rows costs 1 bit a row
RESIDENT_BITS = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}  # what SparseDelta can hold


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that fix a module's layout, checked."""

    mask: Mask
    bits: int
    parts: int  # planes hold `bits - log2(parts)` and `log2(parts)` bits; 1: one plane
    rows_per_step: int
    bias_bits: int  # 0: no bias

    @property
    def part_bits(self) -> int:
        """Bits of the part number of a code."""
        return self.parts.bit_length() - 1

    @property
    def steps(self) -> int:
        """How many steps: one for `rows_per_step` rows."""
        return -(-self.mask.rows // self.rows_per_step)

    @property
    def codes_in_tile(self) -> int:
        """Codes of a tile, those of missing rows of a ragged last tile included."""
        return self.mask.kept * self.mask.rows_per_mask


def _settings(
    shape: tuple[int, ...],
    options: Options,
    name: str = "",
    error: type[UserError] = InvalidArtifact,
) -> Settings:
    rows, columns = check_linear(shape, "deltadq")
    if columns > MAX_COLUMNS:
        raise error(
            f"{name or 'a module'} has {columns} columns; deltadq holds at most {MAX_COLUMNS}: "
            "use lora for this module"
        )
    bits = integer(options, "bits", 1, 8, error)
    parts = integer(options, "parts", 1, 2**bits, error)
    if parts & (parts - 1):
        raise error(f"option 'parts' is {parts}; expected a power of two up to 2^bits = {2**bits}")
    alpha = integer(options, "alpha", 1, columns, error)
    mask = Mask(
        seed=integer(options, "seed", 0, 2**64 - 1, error),
        name=name,
        rows=rows,
        columns=columns,
        alpha=alpha,
        group_size=integer(options, "group_size", alpha, columns, error),
        rows_per_mask=integer(options, "rows_per_mask", 1, 2**16, error),
    )
    rows_per_step = integer(options, "rows_per_step", 1, 2**31 - 1, error)
    return Settings(mask, bits, parts, rows_per_step, bias_bits(options, error))


class DeltaDQ:
    """The codec. Stateless."""

    name = "deltadq"
    role: Role = "delta"
    tolerance = 2e-5

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
        settings = _settings(tuple(delta.shape), wanted, name, CompressionRefused)
        survivors = _gather(delta, settings.mask)
        fit = _fit_minmax if wanted["grid"] == "minmax" else _fit_symmetric
        codes, stored, step = fit(survivors, settings)
        tensors = {**_planes(codes, settings), "step": step}
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
        settings = _settings(shape, options)
        tiles, count = settings.mask.tiles, settings.codes_in_tile
        planes = {"codes": settings.bits - settings.part_bits, "part": settings.part_bits}
        found: dict[str, Part] = {
            plane: (torch.uint8, (tiles, packing.packed_bytes(count, bits)))
            for plane, bits in planes.items()
            if bits
        }
        found["step"] = (torch.float16, (settings.steps,))
        if settings.bias_bits:
            number(options, "bias_scale")
            width = packing.packed_bytes(settings.mask.rows, settings.bias_bits)
            found["bias"] = (torch.uint8, (width,))
        return found

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        extremes = torch.tensor([0.0, 2.0 ** packed.options["bits"] - 1]) - packed.options["zero"]
        check_finite(_steps(packed)[:, None] * extremes, "step times code")

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        return Dense(base.float() + _delta(packed), _bias(packed))

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

    def prepare_lookup(self, packed: Packed, masks: MaskCache) -> Packed:
        """See `Codec.prepare_lookup`: adds the kept columns as a part `columns`."""
        mask = _settings(packed.shape, packed.options, packed.name).mask
        tensors = {**packed.tensors, "columns": masks.columns(mask)}
        return replace(packed, tensors=tensors)

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`. `prepare_lookup` spares drawing the masks."""
        mask = _settings(packed.shape, packed.options, packed.name).mask
        tiles, inverse = torch.unique(ids // mask.rows_per_mask, return_inverse=True)
        columns = packed.tensors.get("columns")
        if columns is None:
            drawn = torch.from_numpy(kept_columns(mask, tiles.numpy()).astype(np.int64))
        else:
            drawn = columns.view(torch.int16)[tiles].long() & 0xFFFF
        codes = _codes(packed, tiles)[inverse, :, ids % mask.rows_per_mask]
        step = _steps(packed)[ids // int(packed.options["rows_per_step"])]
        values = step[:, None] * (codes.float() - float(packed.options["zero"]))
        rows = torch.zeros(len(ids), mask.columns)
        return rows.scatter_(1, drawn[inverse], values)

    def stage(
        self,
        parts: Sequence[PlacedPacked],
        dtype: torch.dtype,
        kernels: KernelBackend,
        masks: MaskCache | None = None,
    ) -> Staged:
        """See `Codec.stage`."""
        return kernels.stage(
            [Placed(p.offset, resident(p.packed, p.bias, masks or MaskCache())) for p in parts]
        )

    def apply(
        self,
        x: Tensor,
        out: Tensor,
        staged: Sequence[Staged],
        spans: Sequence[Span],
        kernels: KernelBackend,
    ) -> None:
        """See `Codec.apply`."""
        kernels.apply(x, out, staged, spans)

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Masks of one row gather every column for every row: long chunks rebuild the weight."""
        return None if packed_options["rows_per_mask"] >= 16 else 32


def resident(packed: Packed, extra_bias: Tensor | None, masks: MaskCache) -> SparseDelta:
    """What kernels read: parts merged, codes widened to 1, 2, 4 or 8 bits, steps times gain."""
    settings = _settings(packed.shape, packed.options, packed.name)
    bits = RESIDENT_BITS[settings.bits]
    codes = packed.tensors.get("codes")
    if codes is None or settings.parts > 1 or bits != settings.bits:
        tile_codes = _codes(packed).view(settings.mask.tiles, -1)
        codes = packing.pack(tile_codes, bits)
    bias = _bias(packed)
    if extra_bias is not None:
        bias = extra_bias if bias is None else bias + extra_bias
    return SparseDelta(
        shape=(settings.mask.rows, settings.mask.columns),
        rows_per_mask=settings.mask.rows_per_mask,
        rows_per_step=settings.rows_per_step,
        bits=bits,
        zero=float(packed.options["zero"]),
        columns=masks.columns(settings.mask),
        codes=codes,
        step=_steps(packed),
        bias=bias,
    )


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


def _indices(mask: Mask) -> Tensor:
    """int64 [tiles, rows_per_mask, kept]: the kept columns, repeated for each row of a tile."""
    columns = torch.from_numpy(kept_columns(mask).astype(np.int64))
    return columns[:, None, :].expand(-1, mask.rows_per_mask, -1)


def _tiled(delta: Tensor, mask: Mask) -> Tensor:
    """[tiles, rows_per_mask, in], missing rows zero."""
    missing = mask.tiles * mask.rows_per_mask - mask.rows
    return torch.nn.functional.pad(delta, (0, 0, 0, missing)).view(
        mask.tiles, mask.rows_per_mask, mask.columns
    )


def _gather(delta: Tensor, mask: Mask) -> Tensor:
    """The survivors times group size / kept, float32 [out, kept]."""
    kept = _tiled(delta, mask).gather(2, _indices(mask)) * mask.rescale()
    return kept.view(-1, mask.kept)[: mask.rows]


def _fit_minmax(survivors: Tensor, settings: Settings) -> tuple[Tensor, dict[str, float], Tensor]:
    """The paper's quantizer: one step and one zero point for the tensor."""
    low, high = float(survivors.min()), float(survivors.max())
    step = (high - low) / (2**settings.bits - 1) or abs(low)
    gain = decimal(step)
    zero = round(-low / gain) if gain else 0
    scaled = survivors / gain if gain else survivors
    codes = (scaled.round() + zero).clamp(0, 2**settings.bits - 1).to(torch.uint8)
    ones = torch.ones(settings.steps, dtype=torch.float16)
    return codes, {"gain": gain, "zero": float(zero)}, ones


def _fit_symmetric(
    survivors: Tensor, settings: Settings
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Least-squares steps, one for `rows_per_step` rows, stored relative to the largest."""
    size = settings.rows_per_step
    full = survivors.shape[0] // size * size
    fitted = [
        symmetric_steps(block, settings.bits)
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
    codes = symmetric_codes(survivors, row_steps, settings.bits)
    return codes, {"gain": gain, "zero": mid_level(settings.bits)}, relative


def _planes(codes: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Codes uint8 [out, kept] as packed planes: within a tile by column, then by row."""
    mask = settings.mask
    missing = mask.tiles * mask.rows_per_mask - mask.rows
    tiled = torch.nn.functional.pad(codes, (0, 0, 0, missing))
    ordered = tiled.view(mask.tiles, mask.rows_per_mask, mask.kept).transpose(1, 2)
    flat = ordered.reshape(mask.tiles, settings.codes_in_tile)
    low_bits = settings.bits - settings.part_bits
    planes = {}
    if low_bits:
        planes["codes"] = packing.pack(flat & (2**low_bits - 1), low_bits)
    if settings.part_bits:
        planes["part"] = packing.pack(flat >> low_bits, settings.part_bits)
    return planes


def _codes(packed: Packed, tiles: Tensor | None = None) -> Tensor:
    """uint8 [tiles, kept, rows_per_mask], of all tiles or of the given ones; parts merged."""
    settings = _settings(packed.shape, packed.options)
    low_bits = settings.bits - settings.part_bits
    merged = torch.zeros((), dtype=torch.uint8)
    for plane, bits, shift in (("codes", low_bits, 0), ("part", settings.part_bits, low_bits)):
        if bits:
            stored = packed.tensors[plane]
            chosen = stored if tiles is None else stored[tiles]
            merged = merged + (packing.unpack(chosen, bits, settings.codes_in_tile) << shift)
    return merged.view(-1, settings.mask.kept, settings.mask.rows_per_mask)


def _steps(packed: Packed) -> Tensor:
    """float32 [steps]: stored step times gain, rounded once."""
    gain = torch.tensor(packed.options["gain"], dtype=torch.float32)
    return packed.tensors["step"].float() * gain


def _bias(packed: Packed) -> Tensor | None:
    bits = packed.options["bias_bits"]
    if not bits:
        return None
    scale = float(packed.options["bias_scale"])
    return unpack_bias(packed.tensors["bias"], scale, bits, packed.shape[0])


def _delta(packed: Packed) -> Tensor:
    """The dense delta, float32 [out, in]."""
    settings = _settings(packed.shape, packed.options, packed.name)
    mask = settings.mask
    levels = _codes(packed).transpose(1, 2).float() - float(packed.options["zero"])
    row_steps = _steps(packed).repeat_interleave(settings.rows_per_step)[: mask.rows]
    missing = mask.tiles * mask.rows_per_mask - mask.rows
    steps = torch.nn.functional.pad(row_steps, (0, missing))
    values = levels * steps.view(mask.tiles, mask.rows_per_mask, 1)
    dense = torch.zeros(mask.tiles, mask.rows_per_mask, mask.columns)
    dense.scatter_(2, _indices(mask), values)
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
