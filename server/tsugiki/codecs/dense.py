"""Parameters stored as they are, or as a difference: vectors, biases, rows, whole matrices.

Owns: what no other codec can carry, and what is too small to be worth compressing.
Modes: `replace` (the parameter itself), `delta` (tuned - base), `rows` (whole rows of a matrix,
replaced or added), `none` (nothing: the carrier of a bias that changed alone).
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
from tsugiki.errors import CompressionRefused, InvalidArtifact
from tsugiki_kernels.deltas import DenseDelta

MODES = ("replace", "delta", "rows", "none")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,  # value = scale * code; mode delta alone
}
LOSSLESS_ORDER = ("bfloat16", "float16", "float32")
LARGEST_CODE = 127


class DenseCodec(DeltaCodec):
    """The codec. Stateless."""

    name = "dense"

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """Pack a parameter; see `Codec.compress`.

        Options: `mode` (replace), `dtype` (auto: the smallest that holds the values exactly;
        float16 for a difference that none holds), `name`. Mode rows takes the rows that differ and
        those beyond the base's.

        Raises:
            CompressionRefused: NaN, infinity, or values that the dtype cannot hold.
        """
        only(options, ("mode", "dtype", "name"), CompressionRefused)
        settings = {"mode": "replace", "dtype": "auto", **options}
        mode = choice(settings, "mode", MODES[:3], CompressionRefused)
        dtype = choice(settings, "dtype", ("auto", *DTYPES), CompressionRefused)
        name = str(options.get("name", ""))
        if not bool(torch.isfinite(tuned).all()):
            raise CompressionRefused(f"{name} holds NaN or infinity: repair the checkpoint first")
        if mode == "rows":
            ids, values = _changed_rows(base, tuned, name)
            stored, extra = _store(values, dtype, name, "float32")
            extra["rows"] = len(ids)
            parts = {"ids": ids.to(torch.int32), "values": stored}
        elif mode == "delta":
            stored, extra = _store(difference(base, tuned, name), dtype, name, "float16")
            parts = {"values": stored}
        else:
            stored, extra = _store(tuned, dtype, name, "float32")
            parts = {"values": stored}
        return Packed(self.name, tuple(tuned.shape), {"mode": mode, **extra}, parts, name)

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """See `Codec.parts`."""
        only(options, ("mode", "dtype", "scale", "rows"))
        mode = choice(options, "mode", MODES)
        if mode == "none":
            return {}
        name = choice(options, "dtype", DTYPES)
        if name == "int8":
            number(options, "scale")
            if mode != "delta":
                raise InvalidArtifact(f"dtype int8 with mode {mode!r}; only differences have codes")
        if mode != "rows":
            return {"values": (DTYPES[name], shape)}
        rows, hidden = check_linear(shape, self.name)
        count = integer(options, "rows", 1, rows)
        return {"ids": (torch.int32, (count,)), "values": (DTYPES[name], (count, hidden))}

    def validate(self, packed: Packed) -> None:
        """See `Codec.validate`."""
        check_parts(packed, self.parts(packed.shape, packed.options))
        if packed.options["mode"] == "rows":
            ids = packed.tensors["ids"]
            if int(ids[0]) < 0 or int(ids[-1]) >= packed.shape[0] or bool((ids.diff() <= 0).any()):
                raise InvalidArtifact(f"row ids are not ascending within 0..{packed.shape[0] - 1}")

    def sound_if_finite(self, options: Options) -> bool:
        """See `Codec.sound_if_finite`: row ids have an order."""
        return bool(options["mode"] != "rows")

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """See `Codec.effective`; in mode rows the result may have more rows than the base."""
        mode = packed.options["mode"]
        if mode == "none":
            return Dense(base.float())
        if mode == "delta":
            return Dense(base.float() + values(packed))
        if mode == "replace":
            return Dense(values(packed))
        full = torch.zeros(packed.shape)
        shared = min(len(base), len(full))
        full[:shared] = base[:shared].float()
        full[packed.tensors["ids"].long()] = values(packed)
        return Dense(full)

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """See `Codec.zero`."""
        return Packed(self.name, shape, {"mode": "none"}, {})

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """See `Codec.lookup`; for differences alone, rows are replaced by the embedding itself.

        Raises:
            InvalidArtifact: a module that is not a difference.
        """
        _only_differences(packed)
        if packed.options["mode"] == "none":
            return torch.zeros(len(ids), packed.shape[1], device=ids.device)
        return _scaled(packed.tensors["values"][ids], packed.options)

    def changes(self, packed: Packed) -> bool:
        """See `Codec.changes`."""
        mode = packed.options["mode"]
        return mode in ("replace", "rows") or (mode == "delta" and bool(values(packed).any()))

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> DenseDelta:
        """See `Codec.resident`: the values in the dtype of activations.

        Raises:
            InvalidArtifact: a module that is not a difference.
        """
        packed = part.packed
        _only_differences(packed)
        rows, columns = check_linear(packed.shape, self.name)
        weight = None if packed.options["mode"] == "none" else values(packed).to(dtype)
        return DenseDelta((rows, columns), weight, part.bias)

    def rows_to_reconstruct(self, packed_options: Options, dtype: torch.dtype) -> int | None:
        """A second dense product costs as much as the base's own."""
        return None if packed_options["mode"] == "none" else 32


def values(packed: Packed) -> Tensor:
    """The stored values, float32."""
    return _scaled(packed.tensors["values"], packed.options)


def _scaled(stored: Tensor, options: Options) -> Tensor:
    if options["dtype"] != "int8":
        return stored.float()
    return stored.float() * torch.tensor(options["scale"], dtype=torch.float32)


def _only_differences(packed: Packed) -> None:
    if packed.options["mode"] not in ("delta", "none"):
        raise InvalidArtifact(
            f"{packed.name or 'a linear'} is stored in mode {packed.options['mode']!r}; linears "
            "are stored as differences: compress it with mode 'delta'"
        )


def _changed_rows(base: Tensor, tuned: Tensor, name: str) -> tuple[Tensor, Tensor]:
    shared = min(len(base), len(tuned))
    changed = (base[:shared].float() != tuned[:shared].float()).any(dim=1).nonzero()[:, 0]
    ids = torch.cat([changed, torch.arange(shared, len(tuned))])
    if not len(ids):
        raise CompressionRefused(f"{name} has no changed row: leave it out")
    return ids, tuned[ids]


def _store(
    wanted: Tensor, dtype: str, name: str, fallback: str
) -> tuple[Tensor, dict[str, float | str]]:
    """The tensor to store and the options that describe it."""
    exact = wanted.float()
    if dtype == "auto":
        dtype = next((d for d in LOSSLESS_ORDER if _holds(exact, DTYPES[d])), fallback)
    if dtype == "int8":
        scale = decimal(float(exact.abs().amax()) / LARGEST_CODE)
        codes = (exact / scale).round() if scale else torch.zeros_like(exact)
        clipped = codes.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
        return clipped, {"dtype": dtype, "scale": scale}
    stored = exact.to(DTYPES[dtype])
    if not bool(torch.isfinite(stored).all()):
        raise CompressionRefused(f"{name} has values beyond {dtype}: store it as float32")
    return stored, {"dtype": dtype}


def _holds(exact: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(exact.to(dtype).float(), exact)


CODEC = DenseCodec()
