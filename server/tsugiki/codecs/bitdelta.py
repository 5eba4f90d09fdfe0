"""BitDelta: the sign of every entry of a delta and one scale for each row.

Source: BitDelta (arXiv 2402.10193): sign(D) times mean|D|. Ours beside it: scales by row, all of
them times one gain so that the approximation loses nothing along the delta itself, and a low-bit
bias correction.
Does not know: files, bases, which kernel runs. Decoding is specified in docs/format.md.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked
from tsugiki.codecs.checks import check_finite, check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.masks import Masks
from tsugiki.codecs.options import bias_bits, decimal, number, only, products_stay_finite
from tsugiki.codecs.quantize import (
    difference,
    matching_gain,
    pack_bias,
    parity,
    resident_bias,
    stored_bias,
)
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import SignDelta

STORED = ("gain", "bias_bits", "bias_scale")
WANTED = ("bias_bits", "gain_matching", "name")
DEFAULT_BIAS_BITS = 6


class BitDelta(DeltaCodec):
    """The codec. Stateless."""

    name = "bitdelta"

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """Pack `tuned - base`; see `Codec.compress`. Options: `gain_matching` (true), `bias_bits`
        (6 when statistics are given), `name`.

        Raises:
            CompressionRefused: an option or a shape that bitdelta cannot carry.
        """
        only(options, WANTED, CompressionRefused)
        bits = bias_bits({"bias_bits": DEFAULT_BIAS_BITS, **options}, CompressionRefused)
        delta = difference(base, tuned, name := str(options.get("name", "")))
        if delta.dim() != 2:
            raise CompressionRefused(
                f"{name} has shape {list(delta.shape)}; bitdelta packs linears"
            )
        scale = delta.abs().mean(dim=1)
        largest = decimal(float(scale.max()))
        relative = (scale / largest).half() if largest else torch.zeros_like(scale).half()
        positive = torch.where(delta == 0, parity(delta.shape), delta) > 0
        signs = packing.pack(positive.to(torch.uint8), 1)
        tensors = {"signs": signs, "scale": relative}
        packed = _packed(delta, {"gain": largest, "bias_bits": 0}, tensors, name)
        if options.get("gain_matching", True):
            gain = decimal(largest * matching_gain(_delta(packed), delta))
            packed = _packed(delta, {"gain": gain, "bias_bits": 0}, tensors, name)
        if stats is None or not bits:
            return packed
        bias = pack_bias((delta - _delta(packed)) @ stats.mean.float(), bits)
        stored = {**packed.options, "bias_bits": bits, "bias_scale": bias.scale}
        return _packed(delta, stored, {**tensors, "bias": bias.codes}, name)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, STORED)
        rows, columns = check_linear(shape, self.name)
        number(options, "gain")
        found: dict[str, Part] = {
            "signs": (torch.uint8, (rows, packing.packed_bytes(columns, 1))),
            "scale": (torch.float16, (rows,)),
        }
        bits = bias_bits(options)
        if bits:
            number(options, "bias_scale")
            found["bias"] = (torch.uint8, (packing.packed_bytes(rows, bits),))
        return found

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        check_finite(_scale(packed), "scale times gain")

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`: no product of a scale and the gain can overflow."""
        return products_stay_finite(options["gain"])

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        return Dense(base.float() + _delta(packed), stored_bias(packed))

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`."""
        options = {"gain": 0.0, "bias_bits": 0}
        tensors = {
            part: torch.zeros(size, dtype=dtype)
            for part, (dtype, size) in self.parts(shape, options).items()
        }
        return Packed(self.name, shape, options, tensors)

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`."""
        return _signs(packed.tensors["signs"][ids], packed.shape[1]) * _scale(packed)[ids, None]

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`."""
        if bool(_scale(packed).any()):
            return True
        bias = stored_bias(packed)
        return bias is not None and bool(bias.any())

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> SignDelta:
        """See `Codec.resident`."""
        packed = part.packed
        rows, columns = check_linear(packed.shape, self.name)
        return SignDelta(
            shape=(rows, columns),
            gain=float(packed.options["gain"]),
            signs=packed.tensors["signs"],
            scale=packed.tensors["scale"],
            bias=resident_bias(part),
        )

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Every entry of the weight takes part: long chunks rebuild it."""
        return 32


def _packed(
    delta: Tensor, options: dict[str, float], tensors: dict[str, Tensor], name: str
) -> Packed:
    return Packed("bitdelta", tuple(delta.shape), options, tensors, name)


def _scale(packed: Packed) -> Tensor:
    """float32 [out]: stored scale times gain, rounded once."""
    gain = torch.tensor(packed.options["gain"], dtype=torch.float32)
    return packed.tensors["scale"].float() * gain


def _signs(packed_rows: Tensor, columns: int) -> Tensor:
    return 2.0 * packing.unpack(packed_rows, 1, columns).float() - 1.0


def _delta(packed: Packed) -> Tensor:
    signs = _signs(packed.tensors["signs"], packed.shape[1])
    return signs * _scale(packed)[:, None]


CODEC = BitDelta()
