"""Sketch: other codebooks on the index map of a sketched base.

Source: SketchTune (arXiv 2410.06364), whose checkpoints hold codebooks alone. Ours beside it: the
difference to the base's codebooks is stored, at 16, 8 or 4 bits, and a fine-tune that was trained
elsewhere can be projected onto the map (the weighted mean of each cell).
Does not know: files, how the map came about (sketch_cells.py), training (tune/).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked, Role
from tsugiki.codecs.checks import check_finite, check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.masks import Masks
from tsugiki.codecs.options import decimal, integer, number, only, products_stay_finite
from tsugiki.codecs.quantize import difference
from tsugiki.codecs.sketch_cells import cell_sums, cells_of
from tsugiki.errors import CompressionRefused, InvalidArtifact
from tsugiki_kernels.codebooks import INDEX_BITS, IndexMap, looked_up
from tsugiki_kernels.deltas import CodebookDelta
from tsugiki_kernels.formulas import codebook_values

STORED = ("bits", "groups", "value_bits", "gain")
WANTED = ("bits", "groups", "value_bits", "name")
VALUE_BITS = (4, 8, 16)
DEFAULT_VALUE_BITS = 8
NOTHING: Options = {"value_bits": 0}  # a module that leaves its codebooks as they are


class Sketch(DeltaCodec):
    """The codec. Stateless."""

    name = "sketch"
    role: Role = "parameters"

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """Project `tuned` onto the map of a sketched `base`; see `Codec.compress`.

        Each cell takes the mean of `tuned - base` over its entries, weighted with E[x_c^2] when
        statistics are given: the least squares of the layer's output for uncorrelated inputs.
        Options: `bits` and `groups` of the base, `value_bits` (8), `name`.

        Raises:
            CompressionRefused: the base is not sketched so, an option, a shape.
        """
        only(options, WANTED, CompressionRefused)
        name = str(options.get("name", ""))
        change = difference(base, tuned, name)
        index = cells_of(base, int(options["bits"]), int(options["groups"]), name)
        weights = torch.ones_like(change)
        if stats is not None:
            weights = weights * stats.second_moment.float().clamp_min(1e-12)
        sums = cell_sums(index, weights)
        means = cell_sums(index, weights * change) / sums.where(sums > 0, 1.0)
        return pack(means, index, int(options.get("value_bits", DEFAULT_VALUE_BITS)), name)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, STORED)
        if options.get("value_bits") == 0:
            only(options, NOTHING)
            return {}
        rows, columns = check_linear(shape, self.name)
        bits = integer(options, "bits", INDEX_BITS[0], INDEX_BITS[-1])
        count = integer(options, "groups", 1, columns) << bits
        if columns % options["groups"]:
            raise InvalidArtifact(f"option 'groups' is {options['groups']}; {columns} columns")
        number(options, "gain")
        value_bits = integer(options, "value_bits", 4, 16)
        if value_bits == 16:
            return {"values": (torch.float16, (rows, count))}
        if value_bits not in VALUE_BITS:
            raise InvalidArtifact(f"option 'value_bits' is {value_bits}; expected 4, 8 or 16")
        packed = (rows, packing.packed_bytes(count, value_bits))
        return {"codes": (torch.uint8, packed), "step": (torch.float16, (rows,))}

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        if packed.tensors:
            check_finite(changes_of(packed), "codebook differences times gain")

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`: no product of a value, a step and the gain can overflow."""
        return options["value_bits"] == 0 or products_stay_finite(options["gain"], 128.0)

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`; the base's weight says which entries share a cell."""
        if not packed.tensors:
            return Dense(base.float())
        bits, groups = packed.options["bits"], packed.options["groups"]
        index = cells_of(base, bits, groups, packed.name)
        return Dense(base.float() + looked_up(index, changes_of(packed)))

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`."""
        return Packed(self.name, shape, dict(NOTHING), {})

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`; embeddings are never sketched.

        Raises:
            InvalidArtifact: always.
        """
        raise InvalidArtifact(f"module {packed.name!r}: codec sketch holds linears, no embeddings")

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`."""
        return bool(packed.tensors) and bool(changes_of(packed).any())

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> CodebookDelta:
        """See `Codec.resident`: values as they are stored; codes of 4 bits take a byte each.

        Raises:
            InvalidArtifact: the base has no index map there, or another one.
        """
        packed, index = part.packed, part.index
        if index is None:
            raise InvalidArtifact(
                f"module {packed.name!r} holds codebooks, but this base is not sketched: serve it "
                "on the base that `tsugiki compress-base sketch` wrote"
            )
        if not packed.tensors:
            return CodebookDelta(
                index, 1.0, torch.zeros(index.codebook_shape).half(), None, part.bias
            )
        found = packed.options["bits"], packed.options["groups"]
        if found != (index.bits, index.groups):
            raise InvalidArtifact(
                f"module {packed.name!r} is for {found[0]} bits and {found[1]} groups; this base "
                f"has {index.bits} and {index.groups}"
            )
        return _delta(packed, index, part.bias)

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """A base of looked-up weights has no dense one to rebuild from."""
        return None


def pack(changes: Tensor, index: IndexMap, value_bits: int, name: str) -> Packed:
    """Differences to the base's codebooks, float32 [out, groups, entries], as a module.

    Raises:
        CompressionRefused: an unknown number of bits, NaN or infinity.
    """
    if value_bits not in VALUE_BITS:
        raise CompressionRefused(f"--value-bits is {value_bits}; expected 4, 8 or 16")
    if not bool(torch.isfinite(changes).all()):
        raise CompressionRefused(f"{name} holds NaN or infinity: train again, with a lower rate")
    flat = changes.float().flatten(1)
    largest = flat.abs().amax(1)
    gain = decimal(float(largest.max())) or 1.0
    options = {"bits": index.bits, "groups": index.groups, "value_bits": value_bits, "gain": gain}
    if value_bits == 16:
        tensors = {"values": (flat / gain).half()}
    else:
        half = 1 << (value_bits - 1)
        step = (largest / gain / (half - 1)).half()
        scale = step.float()[:, None] * gain
        codes = (flat / scale.where(scale > 0, 1.0)).round().clamp(-half, half - 1) + half
        tensors = {"codes": packing.pack(codes.to(torch.uint8), value_bits), "step": step}
    return Packed("sketch", index.shape, options, tensors, name)


def _delta(packed: Packed, index: IndexMap, bias: Tensor | None) -> CodebookDelta:
    shape, bits = index.codebook_shape, packed.options["value_bits"]
    gain = float(packed.options["gain"])
    if bits == 16:
        return CodebookDelta(index, gain, packed.tensors["values"].view(shape), None, bias)
    codes = packing.unpack(packed.tensors["codes"], bits, shape[1] * shape[2])
    values = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8).view(shape)
    return CodebookDelta(index, gain, values, packed.tensors["step"], bias)


def changes_of(packed: Packed) -> Tensor:
    """float32 [out, groups, entries]: what is added to the base's codebooks."""
    bits, groups = packed.options["bits"], packed.options["groups"]
    rows, columns = packed.shape
    unread = torch.empty(0, dtype=torch.uint8)
    return codebook_values(_delta(packed, IndexMap((rows, columns), bits, groups, unread), None))


CODEC = Sketch()
