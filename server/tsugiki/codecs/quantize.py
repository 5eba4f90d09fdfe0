"""Fitting uniform quantizers to values, and checks that all codecs share.

Owns: the choice of steps and gains at compression time; nothing here is needed to decode but
`stored_bias`. Does not know: masks, files, which codec asks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.base import Packed, PlacedPacked
from tsugiki.codecs.options import decimal
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import Bias, CodedBias

CANDIDATES = torch.logspace(-1.4, 0.0, 24)  # of a step, relative to the one that clips nothing
REFINEMENTS = 3


def mid_level(bits: int) -> float:
    """The code that stands for zero on a symmetric grid, usually half way between two codes."""
    return (1 << bits) / 2 - 0.5


def parity(shape: torch.Size) -> Tensor:
    """+1 and -1 in the pattern of a chessboard, float32: a direction for entries that have none."""
    rows, columns = shape
    places = torch.arange(rows)[:, None] + torch.arange(columns)
    return 1.0 - 2.0 * (places % 2)


def symmetric_codes(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """The nearest codes, uint8: value = step * (code - (2^bits - 1) / 2). A step of 0 gives 0."""
    scaled = torch.where(step > 0, values / step, torch.zeros(()))
    # zero lies half way between two codes: taking always the same one would be a bias, and in a
    # 16-bit checkpoint many entries of a delta are exactly zero
    scaled = torch.where(scaled == 0, parity(values.shape) / 4, scaled)
    return (scaled + mid_level(bits)).round().clamp(0, (1 << bits) - 1).to(torch.uint8)


def symmetric_steps(values: Tensor, bits: int) -> Tensor:
    """The step of each row of [groups, n] with the least squared error, float32 [groups].

    1 bit: 2 mean|v| is the optimum. Else a search over clipping points, then a few rounds of "best
    step for these codes, best codes for this step".
    """
    if bits == 1:
        return 2 * values.abs().mean(dim=1)
    peak = values.abs().amax(dim=1) / mid_level(bits)
    best, least = peak, torch.full_like(peak, torch.inf)
    for fraction in CANDIDATES:
        step = peak * fraction
        error = _errors(values, step, bits)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    for _ in range(REFINEMENTS):
        best = _refined(values, best, bits)
    return best


def _levels(values: Tensor, step: Tensor, bits: int) -> Tensor:
    """The nearest levels of the grid; which one zero takes makes no difference to the error."""
    mid = mid_level(bits)
    scaled = torch.where(step > 0, 1 / step, torch.zeros(()))[:, None] * values
    return (scaled + mid).round_().clamp_(0, 2 * mid).sub_(mid)


def _errors(values: Tensor, step: Tensor, bits: int) -> Tensor:
    return (values - _levels(values, step, bits) * step[:, None]).square().sum(dim=1)


def _refined(values: Tensor, step: Tensor, bits: int) -> Tensor:
    levels = _levels(values, step, bits)
    energy = levels.square().sum(dim=1)
    return torch.where(energy > 0, (values * levels).sum(dim=1) / energy, step)


def matching_gain(approximation: Tensor, delta: Tensor) -> float:
    """The factor f with <f approximation, delta> = <delta, delta>; 1 where there is none.

    A delta reproduced with gain 1 along itself loses nothing systematically; the rest is noise that
    averages out over the layers (our measurements, see docs/codecs.md).
    """
    inner = float((approximation.double() * delta.double()).sum())
    energy = float(delta.double().square().sum())
    return energy / inner if inner > 0 and energy > 0 else 1.0


@dataclass(frozen=True, slots=True)
class PackedBias:
    """A bias correction as stored."""

    codes: Tensor  # uint8 [ceil(out * bits / 8)]
    scale: float


def pack_bias(bias: Tensor, bits: int) -> PackedBias:
    """Codes and scale of a float32 [out] bias: value = scale * (code - 2^(bits - 1))."""
    half = 1 << (bits - 1)
    peak = float(bias.abs().amax()) / (half - 1)
    fractions = torch.linspace(0.3, 1.0, 29).tolist()
    scale = decimal(min((peak * f for f in fractions), key=lambda s: _bias_error(bias, s, bits)))
    return PackedBias(packing.pack(_bias_codes(bias, scale, bits)[None], bits)[0], scale)


def _bias_codes(bias: Tensor, scale: float, bits: int) -> Tensor:
    half = 1 << (bits - 1)
    scaled = bias / scale if scale > 0 else torch.zeros_like(bias)
    return (scaled.round() + half).clamp(0, (1 << bits) - 1).to(torch.uint8)


def _bias_error(bias: Tensor, scale: float, bits: int) -> float:
    values = scale * (_bias_codes(bias, scale, bits).float() - (1 << (bits - 1)))
    return float((bias - values).square().sum())


def stored_bias(packed: Packed) -> Tensor | None:
    """The bias that a packed linear adds, float32 [out]; None where it stores none."""
    bits = packed.options["bias_bits"]
    if not bits:
        return None
    codes = packing.unpack(packed.tensors["bias"][None], bits, packed.shape[0])[0]
    scale = torch.tensor(float(packed.options["bias_scale"]), dtype=torch.float32)
    bias: Tensor = (codes.float() - (1 << (bits - 1))) * scale
    return bias


def resident_bias(part: PlacedPacked) -> Bias | None:
    """What kernels add for a packed linear and the changed bias of its module: codes as stored, or
    float32 [out] where the module's own has to be added to them."""
    packed = part.packed
    if part.bias is not None:
        stored = stored_bias(packed)
        return part.bias if stored is None else stored + part.bias
    bits = packed.options["bias_bits"]
    if not bits:
        return None
    return CodedBias(packed.tensors["bias"], bits, float(packed.options["bias_scale"]))


def difference(base: Tensor, tuned: Tensor, name: str) -> Tensor:
    """tuned - base in float32.

    Raises:
        CompressionRefused: different shapes, NaN or infinity.
    """
    if base.shape != tuned.shape:
        raise CompressionRefused(
            f"{name} has shape {list(tuned.shape)} in the fine-tune and {list(base.shape)} in the "
            "base: only modules of the same shape have a difference"
        )
    delta = tuned.float() - base.float()
    if not bool(torch.isfinite(delta).all()):
        raise CompressionRefused(f"{name} holds NaN or infinity: repair the checkpoint first")
    return delta
