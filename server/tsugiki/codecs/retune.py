"""What of a packed linear can be trained without changing its bytes: factors on steps, the bias.

Owns: for each codec that offers it, how many rows share a factor, and the packed module with new
factors and a new bias. Does not know: losses, data, models (tune/).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from tsugiki.codecs.base import Packed
from tsugiki.codecs.options import LARGEST_FLOAT16
from tsugiki.codecs.quantize import pack_bias, stored_bias


class Retune(Protocol):
    """One codec's way to take trained values."""

    def rows_per_factor(self, packed: Packed) -> int:
        """Rows of the linear whose stored change one factor scales."""

    def bias(self, packed: Packed) -> Tensor | None:
        """The stored bias correction, float32 [out]; None: the module stores none."""

    def retuned(self, packed: Packed, factors: Tensor, bias: Tensor | None) -> Packed:
        """The module with its change scaled by `factors` (float32 [ceil(out / rows_per_factor)])
        and `bias` (float32 [out]) in place of the stored one; as many bytes as before."""


class _DeltaDQ:
    """Steps are stored as float16, relative to the module's gain; the bias as low-bit codes."""

    def rows_per_factor(self, packed: Packed) -> int:
        return int(packed.options["rows_per_step"])

    def bias(self, packed: Packed) -> Tensor | None:
        return stored_bias(packed)

    def retuned(self, packed: Packed, factors: Tensor, bias: Tensor | None) -> Packed:
        step = (packed.tensors["step"].float() * factors).clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16)
        tensors = {**packed.tensors, "step": step.half()}
        options = dict(packed.options)
        if bias is not None:
            stored = pack_bias(bias, packed.options["bias_bits"])
            tensors["bias"], options["bias_scale"] = stored.codes, stored.scale
        return replace(packed, options=options, tensors=tensors)


RETUNABLE: Mapping[str, Retune] = {"deltadq": _DeltaDQ()}
