"""LoRA: a delta of low rank, scale * B A.

Source: LoRA (arXiv 2106.09685). Adapters of PEFT are read by peft_adapter.py and stored as they
are; `compress` takes the low-rank part of a full fine-tune (truncated SVD of the difference).
Does not know: files, bases, which kernel runs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsugiki.codecs.base import Dense, ModuleStats, Options, Packed, Part, PlacedPacked
from tsugiki.codecs.checks import check_linear, check_parts
from tsugiki.codecs.delta_codec import DeltaCodec
from tsugiki.codecs.masks import Masks
from tsugiki.codecs.options import choice, decimal, integer, number, only
from tsugiki.codecs.quantize import difference
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import LowRankDelta

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULTS = {"rank": 16, "dtype": "float16"}
EXACT_SVD_UP_TO = 1024  # smaller side; beyond it a randomized SVD
OVERSAMPLE = 16
POWER_ITERATIONS = 4


class LoRA(DeltaCodec):
    """The codec. Stateless."""

    name = "lora"

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """The best approximation of `tuned - base` of rank `rank` (16), its factors in `dtype`
        (float16); see `Codec.compress`.

        Raises:
            CompressionRefused: a rank beyond the matrix, or a shape that is no linear.
        """
        only(options, ("rank", "dtype", "name"), CompressionRefused)
        wanted = {**DEFAULTS, **options}
        name = str(options.get("name", ""))
        dtype = choice(wanted, "dtype", DTYPES, CompressionRefused)
        delta = difference(base, tuned, name)
        if delta.dim() != 2:
            raise CompressionRefused(f"{name} has shape {list(delta.shape)}; lora packs linears")
        rank = integer(wanted, "rank", 1, min(delta.shape), CompressionRefused)
        u, s, v = truncated_svd(delta, rank)
        root = s.sqrt()
        a, b = (v * root[:, None]).to(DTYPES[dtype]), (u * root).to(DTYPES[dtype])
        return low_rank(name, a.contiguous(), b.contiguous(), 1.0)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, ("rank", "scale", "dtype"))
        rows, columns = check_linear(shape, self.name)
        number(options, "scale")
        rank = integer(options, "rank", 1, max(rows, columns))
        dtype = DTYPES[choice(options, "dtype", DTYPES)]
        return {"a": (dtype, (rank, columns)), "b": (dtype, (rows, rank))}

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`."""
        return True

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`."""
        a, b = packed.tensors["a"].float(), packed.tensors["b"].float()
        return Dense(base.float() + (b @ a) * packed.options["scale"])

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`."""
        rows, columns = check_linear(shape, self.name)
        return low_rank("", torch.zeros(1, columns), torch.zeros(rows, 1), 0.0)

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`."""
        a, b = packed.tensors["a"].float(), packed.tensors["b"][ids].float()
        change: Tensor = (b @ a) * packed.options["scale"]
        return change

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`; a rank counts when neither of its factors is zero."""
        a, b = packed.tensors["a"].any(dim=1), packed.tensors["b"].any(dim=0)
        return packed.options["scale"] != 0 and bool((a & b).any())

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> LowRankDelta:
        """See `Codec.resident`: the factors in the dtype of activations."""
        tensors, scale = part.packed.tensors, float(part.packed.options["scale"])
        return LowRankDelta(tensors["a"].to(dtype), tensors["b"].to(dtype), scale, part.bias)

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """Two thin products stay cheaper than a rebuilt weight at every length."""
        return None


def low_rank(name: str, a: Tensor, b: Tensor, scale: float) -> Packed:
    """A packed module of factors as they are: a [rank, in] and b [out, rank] of one dtype."""
    dtype = next(key for key, value in DTYPES.items() if value == a.dtype)
    options = {"rank": a.shape[0], "scale": decimal(scale), "dtype": dtype}
    return Packed("lora", (b.shape[0], a.shape[1]), options, {"a": a, "b": b}, name)


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """u [out, rank], s [rank], v [rank, in] of the largest singular values; deterministic.

    Large matrices: randomized range finding with power iterations (Halko, Martinsson, Tropp 2011,
    algorithm 4.4), seeded.
    """
    if min(matrix.shape) <= EXACT_SVD_UP_TO:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    generator = torch.Generator().manual_seed(0)
    width = min(rank + OVERSAMPLE, *matrix.shape)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], width, generator=generator))[0]
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], v[:rank]


CODEC = LoRA()
