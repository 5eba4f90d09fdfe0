"""CALDERA: other low-rank factors on the backbone of a lattice base.

Source: CALDERA (arXiv 2405.18886). Ours: one backbone Q for all fine-tunes; a fine-tune's factors
stand where the base has its own, and carry what rounding took from the base as well as what the
fine-tune changed. `compress` finds them by regression, without training.
Does not know: files, the lattice (tsugiki_kernels/lattice.py), training (tune/).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsugiki.codecs import factors
from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked, Role
from tsugiki.codecs.checks import check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.factors import FACTOR_BITS, Factors, factor_parts
from tsugiki.codecs.low_rank_fit import damped, fit
from tsugiki.codecs.masks import Masks
from tsugiki.codecs.options import integer, only
from tsugiki.codecs.quantize import difference
from tsugiki.errors import CompressionRefused, InvalidArtifact
from tsugiki_kernels.deltas import LowRankDelta

STORED = ("rank", "factor_bits")
DEFAULTS = {"rank": 32, "factor_bits": 4}
NOTHING: Options = {"rank": 0}  # a module that leaves the base's factors in their place


class Caldera(DeltaCodec):
    """The codec. Stateless. `base` of its methods is the backbone alone (Checkpoint.backbone)."""

    name = "caldera"
    role: Role = "parameters"
    wants_grams = True

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """The factors of `rank` (32) at `factor_bits` (4) with which the backbone comes closest to
        `tuned`; see `Codec.compress`. With statistics, an error of a column weighs as much as its
        inputs do: by their Gram matrix where there is one, else by their second moments.

        Raises:
            CompressionRefused: an option, a rank beyond the matrix.
        """
        only(options, (*STORED, "name"), CompressionRefused)
        wanted = {**DEFAULTS, **options}
        name = str(options.get("name", ""))
        missing = difference(base, tuned, name)
        rank = integer(wanted, "rank", 1, min(missing.shape), CompressionRefused)
        found = fit(missing, _metric(stats, missing.shape[1]), rank, _bits(wanted))
        return pack(found.factors, _bits(wanted), name)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, STORED)
        if options.get("rank") == 0:
            only(options, NOTHING)
            return {}
        linear = check_linear(shape, self.name)
        rank = integer(options, "rank", 1, min(linear))
        bits = integer(options, "factor_bits", min(FACTOR_BITS), max(FACTOR_BITS))
        if bits not in FACTOR_BITS:
            raise InvalidArtifact(f"option 'factor_bits' is {bits}; expected 4, 8 or 16")
        return factor_parts(linear, rank, bits)

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`."""
        return True

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        if not packed.tensors:
            return Dense(base.float())
        return Dense(base.float() + unpacked(packed).product())

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`."""
        return Packed(self.name, shape, dict(NOTHING), {})

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`; embeddings have no backbone.

        Raises:
            InvalidArtifact: always.
        """
        raise InvalidArtifact(f"module {packed.name!r}: codec caldera holds linears, no embeddings")

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`: the base's own factors are replaced."""
        return bool(packed.tensors)

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> LowRankDelta:
        """See `Codec.resident`: factors in the dtype of activations; the base's own where the
        module changes nothing.

        Raises:
            InvalidArtifact: the base has no slot there.
        """
        if part.factors is None:
            raise InvalidArtifact(
                f"module {part.packed.name!r} holds factors for a lattice backbone, but this base "
                "has none: serve it on the base that `tsugiki compress-base caldera` wrote"
            )
        if part.packed.tensors:
            return factors.low_rank_delta(unpacked(part.packed), dtype, part.bias)
        own = part.factors
        if not len(own.a):  # kernels want a rank
            nothing = Factors(torch.zeros(len(own.b), 1), torch.zeros(1, own.a.shape[1]))
            return factors.low_rank_delta(nothing, dtype, part.bias)
        return LowRankDelta(own.a, own.b, own.scale, part.bias)

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Two thin products stay cheaper than a rebuilt weight at every length."""
        return None


def pack(found: Factors, bits: int, name: str) -> Packed:
    """Factors as a module.

    Raises:
        CompressionRefused: NaN or infinity.
    """
    if not bool(torch.isfinite(found.left).all() & torch.isfinite(found.right).all()):
        raise CompressionRefused(f"{name} holds NaN or infinity: train again, with a lower rate")
    shape = found.left.shape[0], found.right.shape[1]
    options = {"rank": found.rank, "factor_bits": bits}
    return Packed(CODEC.name, shape, options, factors.stored(found, bits), name)


def unpacked(packed: Packed) -> Factors:
    """The factors of a module that has some."""
    rows, columns = packed.shape
    return factors.read(packed.tensors, (rows, columns), int(packed.options["factor_bits"]))


def _bits(options: Options) -> int:
    bits = int(options["factor_bits"])
    if bits not in FACTOR_BITS:
        raise CompressionRefused(f"--factor-bits is {bits}; expected 4, 8 or 16")
    return bits


def _metric(stats: ModuleStats | None, width: int) -> Tensor:
    """What an error of each column costs; the same for all without calibration."""
    if stats is None:
        return torch.eye(width)
    return damped(torch.diag(stats.second_moment) if stats.gram is None else stats.gram)


CODEC = Caldera()
