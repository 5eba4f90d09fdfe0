"""How a deltadq module lies in its tensors: tiles, kept columns, planes of codes.

Owns: the options that fix the layout, the order of codes within a tile (docs/format.md 5.2).
Does not know: how codes were chosen, steps, biases, kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Options
from tsugiki.codecs.checks import check_linear
from tsugiki.codecs.masks import MAX_COLUMNS, Mask, kept_columns
from tsugiki.codecs.options import bias_bits, integer
from tsugiki.errors import InvalidArtifact, UserError

TILES_AT_ONCE = 64  # of `any_level`: the first ones nearly always decide


@dataclass(frozen=True, slots=True)
class Layout:
    """The options that fix where everything lies, checked."""

    mask: Mask
    bits: int
    parts: int  # planes hold `bits - log2(parts)` and `log2(parts)` bits; 1: one plane
    rows_per_step: int
    bias_bits: int  # 0: no bias

    @property
    def planes(self) -> dict[str, int]:
        """The planes that codes are stored in, low bits first: name -> bits, none of them 0."""
        high = self.parts.bit_length() - 1
        bits = {"codes": self.bits - high, "part": high}
        return {plane: width for plane, width in bits.items() if width}

    @property
    def steps(self) -> int:
        """How many steps: one for `rows_per_step` rows."""
        return -(-self.mask.rows // self.rows_per_step)

    @property
    def codes_in_tile(self) -> int:
        """Codes of a tile, those of missing rows of a ragged last tile included."""
        return self.mask.kept * self.mask.rows_per_mask


def layout_of(
    shape: tuple[int, ...],
    options: Options,
    name: str = "",
    error: type[UserError] = InvalidArtifact,
) -> Layout:
    """Check the options of a module.

    Raises:
        error: naming the option, its value and the range.
    """
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
    integer(options, "seed", 0, 2**64 - 1, error)
    integer(options, "group_size", alpha, columns, error)
    integer(options, "rows_per_mask", 1, 2**16, error)
    integer(options, "rows_per_step", 1, 2**31 - 1, error)
    bias_bits(options, error)
    return known_layout((rows, columns), options, name)


def known_layout(shape: tuple[int, ...], options: Options, name: str) -> Layout:
    """The layout of options that were checked before."""
    mask = Mask(
        seed=options["seed"],
        name=name,
        rows=shape[0],
        columns=shape[1],
        alpha=options["alpha"],
        group_size=options["group_size"],
        rows_per_mask=options["rows_per_mask"],
    )
    return Layout(
        mask, options["bits"], options["parts"], options["rows_per_step"], options["bias_bits"]
    )


def column_indices(mask: Mask) -> Tensor:
    """int64 [tiles, rows_per_mask, kept]: the kept columns, repeated for each row of a tile."""
    columns = torch.from_numpy(kept_columns(mask).astype(np.int64))
    return columns[:, None, :].expand(-1, mask.rows_per_mask, -1)


def tiled(values: Tensor, mask: Mask) -> Tensor:
    """[out, n] -> [tiles, rows_per_mask, n], missing rows zero."""
    missing = mask.tiles * mask.rows_per_mask - mask.rows
    padded = torch.nn.functional.pad(values, (0, 0, 0, missing))
    return padded.view(mask.tiles, mask.rows_per_mask, -1)


def gather_survivors(delta: Tensor, mask: Mask) -> Tensor:
    """The survivors times group size / kept, float32 [out, kept]."""
    kept = tiled(delta, mask).gather(2, column_indices(mask)) * mask.rescale()
    return kept.view(-1, mask.kept)[: mask.rows]


def pack_codes(codes: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Codes uint8 [out, kept] as packed planes: within a tile by column, then by row."""
    ordered = tiled(codes, layout.mask).transpose(1, 2)
    rest = ordered.reshape(layout.mask.tiles, layout.codes_in_tile)
    planes = {}
    for plane, bits in layout.planes.items():
        planes[plane] = packing.pack(rest & ((1 << bits) - 1), bits)
        rest = rest >> bits
    return planes


def unpack_codes(
    tensors: Mapping[str, Tensor], layout: Layout, tiles: Tensor | None = None
) -> Tensor:
    """uint8 [tiles, kept, rows_per_mask], of all tiles or of the given ones; planes merged."""
    merged = torch.zeros((), dtype=torch.uint8)
    shift = 0
    for plane, bits in layout.planes.items():
        stored = tensors[plane] if tiles is None else tensors[plane][tiles]
        merged = merged + (packing.unpack(stored, bits, layout.codes_in_tile) << shift)
        shift += bits
    return merged.view(-1, layout.mask.kept, layout.mask.rows_per_mask)


def any_level(tensors: Mapping[str, Tensor], layout: Layout, zero: float, live: Tensor) -> bool:
    """Whether any code - zero of a row whose step is `live` (bool [steps]) is not 0."""
    if not zero.is_integer() or not 0 <= zero < 1 << layout.bits:
        return bool(live.any())  # no code stands for zero, as on the symmetric grid
    rows = live.repeat_interleave(layout.rows_per_step)[: layout.mask.rows, None]
    live_rows = tiled(rows, layout.mask)[:, None, :, 0]
    blocks = torch.split(torch.arange(layout.mask.tiles), TILES_AT_ONCE)
    return any(
        bool(((unpack_codes(tensors, layout, tiles) != zero) & live_rows[tiles]).any())
        for tiles in blocks
    )
