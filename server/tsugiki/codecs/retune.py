"""What of a packed linear can be trained without changing its bytes, and packing it again.

Owns: for each codec that offers it, a module that adds what training changes, and the packed
linear with the trained values. Does not know: losses, data, models (tune/).

Every value is trained in a unit of its own size, so that one learning rate for each kind of value
fits every layer of every model.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs import bitdelta, caldera, deltadq
from tsugiki.codecs.base import Packed
from tsugiki.codecs.factors import Factors
from tsugiki.codecs.options import LARGEST_FLOAT16
from tsugiki.codecs.quantize import pack_bias, stored_bias
from tsugiki.codecs.saten_retune import SatenChange
from tsugiki.codecs.sketch_retune import SketchChange
from tsugiki.codecs.trainable import TrainableChange, hold, unit


class ScaledChange(TrainableChange):
    """rho (x D^T) + u beta, D being the stored change: a factor for each group of rows that shares
    a step, and the bias where one is stored."""

    _change: Tensor
    _bias: Tensor | None
    _unit: Tensor

    def __init__(
        self, packed: Packed, change: Tensor, rows_per_factor: int, step: str, dtype: torch.dtype
    ) -> None:
        """`change`: the stored one, [out, in]; `step`: the part that factors are multiplied into,
        float16 [ceil(out / rows_per_factor)]."""
        super().__init__()
        self._packed, self._step = packed, step
        self._rows_per_factor = rows_per_factor
        hold(self, _change=change.to(dtype), _bias=stored_bias(packed))
        self.factors = nn.Parameter(torch.zeros(-(-packed.shape[0] // rows_per_factor)))
        if self._bias is not None:
            hold(self, _unit=unit(self._bias))
            self.biases = nn.Parameter(torch.zeros(packed.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """See `TrainableChange.forward`."""
        factor = self.factors.repeat_interleave(self._rows_per_factor)[: self._packed.shape[0]]
        y = F.linear(x, self._change) * factor.to(x.dtype)
        return y if self._bias is None else y + (self._unit * self.biases).to(x.dtype)

    @torch.no_grad()
    def pack(self) -> Packed:
        """See `TrainableChange.pack`."""
        packed, options = self._packed, dict(self._packed.options)
        steps = packed.tensors[self._step].float() * (1 + self.factors)
        limited = steps.clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16).half()
        tensors = {**packed.tensors, self._step: limited}
        if self._bias is not None:
            stored = pack_bias(self._bias + self._unit * self.biases, options["bias_bits"])
            tensors["bias"], options["bias_scale"] = stored.codes, stored.scale
        return replace(packed, options=options, tensors=tensors)


class LowRankChange(TrainableChange):
    """scale (x A'^T B'^T - x A^T B^T), A' = A + u a and B' = B + v b."""

    _a: Tensor
    _b: Tensor
    _unit_a: Tensor
    _unit_b: Tensor

    def __init__(
        self, packed: Packed, a: Tensor, b: Tensor, scale: float, dtype: torch.dtype
    ) -> None:
        """`a` [rank, in] and `b` [out, rank]: the factors as they are stored, float32."""
        super().__init__()
        self._packed, self._scale = packed, scale
        hold(self, _a=a, _b=b, _unit_a=unit(a), _unit_b=unit(b))
        self._dtype = dtype
        self.low_rank_a = nn.Parameter(torch.zeros_like(self._a))
        self.low_rank_b = nn.Parameter(torch.zeros_like(self._b))

    def forward(self, x: Tensor) -> Tensor:
        """See `TrainableChange.forward`."""
        now, before = (
            F.linear(F.linear(x, a.to(self._dtype)), b.to(self._dtype))
            for a, b in (self._factors(), (self._a, self._b))
        )
        return (now - before) * self._scale

    def _factors(self) -> tuple[Tensor, Tensor]:
        return (
            self._a + self._unit_a * self.low_rank_a,
            self._b + self._unit_b * self.low_rank_b,
        )


class LoraChange(LowRankChange):
    """Of an adapter: its factors in the dtype that they had."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        a, b = (packed.tensors[part].float() for part in ("a", "b"))
        super().__init__(packed, a, b, float(packed.options["scale"]), dtype)

    @torch.no_grad()
    def pack(self) -> Packed:
        """See `TrainableChange.pack`."""
        dtype = self._packed.tensors["a"].dtype
        largest = torch.finfo(dtype).max
        a, b = (value.clamp(-largest, largest).to(dtype) for value in self._factors())
        return replace(self._packed, tensors={"a": a, "b": b})


class CalderaChange(LowRankChange):
    """Of the factors on a backbone: rounded to as many bits as before."""

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        stored = caldera.unpacked(packed)
        super().__init__(packed, stored.right, stored.left, 1.0, dtype)

    @torch.no_grad()
    def pack(self) -> Packed:
        """See `TrainableChange.pack`."""
        right, left = self._factors()
        bits = int(self._packed.options["factor_bits"])
        return caldera.pack(Factors(left, right), bits, self._packed.name)


def _deltadq(packed: Packed, dtype: torch.dtype) -> TrainableChange:
    """Steps are stored relative to the module's gain; the bias as low-bit codes."""
    change = deltadq.CODEC.effective(torch.zeros(packed.shape), packed).weight
    return ScaledChange(packed, change, int(packed.options["rows_per_step"]), "step", dtype)


def _bitdelta(packed: Packed, dtype: torch.dtype) -> TrainableChange:
    """A scale for each row, relative to the module's gain."""
    change = bitdelta.CODEC.effective(torch.zeros(packed.shape), packed).weight
    return ScaledChange(packed, change, 1, "scale", dtype)


# codec -> its trainable part, computed with in this dtype beside the linear as it is packed
TRAINABLE: Mapping[str, Callable[[Packed, torch.dtype], TrainableChange]] = {
    "deltadq": _deltadq,
    "bitdelta": _bitdelta,
    "caldera": CalderaChange,
    "lora": LoraChange,
    "saten": SatenChange,
}

# codec -> the same, where the base's weight says which entries share a value
TRAINABLE_ON_BASE: Mapping[str, Callable[[Packed, Tensor], TrainableChange]] = {
    "sketch": SketchChange
}


def trainable(
    packed: Packed, base: Callable[[], Tensor], dtype: torch.dtype
) -> TrainableChange | None:
    """What can be trained of this module, computed with in `dtype` beside the linear as it is
    packed; None: nothing. `base()`: float32 [out, in], what the module changes or replaces."""
    if packed.codec in TRAINABLE:
        return TRAINABLE[packed.codec](packed, dtype)
    if packed.codec in TRAINABLE_ON_BASE and packed.tensors:
        return TRAINABLE_ON_BASE[packed.codec](packed, base())
    return None
