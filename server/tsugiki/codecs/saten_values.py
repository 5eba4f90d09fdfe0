"""Numbers at 16, 8 or 4 bits, a step for each group of them: cores and sparse values of saten.

Owns: the choice of steps, storing and reading. Does not know: what the numbers are, which of them
are a group.

16 bits: float16 times a gain. 8 and 4: S (code - (2^bits - 1) / 2) with S = step * gain, rounded to
float32: a grid without zero, for what is kept is far from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.options import LARGEST_FLOAT16, decimal
from tsugiki.codecs.quantize import mid_level
from tsugiki_kernels.formulas import times_gain

BITS = (4, 8, 16)
FRACTIONS = torch.linspace(0.3, 1.0, 15).tolist()  # of the step that clips nothing


@dataclass(frozen=True, slots=True)
class Stored:
    """Numbers as stored."""

    gain: float
    values: Tensor  # float16 [n], or uint8: packed codes
    step: Tensor | None  # float16 [groups]; None at 16 bits


def store(values: Tensor, group: Tensor, groups: int, bits: int) -> Stored:
    """values float32 [n], of the groups `group` (int64 [n])."""
    if bits == 16:
        gain = decimal(float(values.abs().amax())) if len(values) else 1.0
        return Stored(gain or 1.0, (values / (gain or 1.0)).half(), None)
    peak = torch.zeros(groups).scatter_reduce_(0, group, values.abs(), "amax") / mid_level(bits)
    step = _best_steps(values, group, peak, bits)
    gain = decimal(float(step.amax())) or 1.0
    stored = (step / gain).half()
    codes = _codes(values, times_gain(stored, gain)[group], bits)
    return Stored(gain, packing.pack(codes[None], bits)[0], stored)


def read(stored: Stored, group: Tensor, bits: int) -> Tensor:
    """float32 [n]."""
    if stored.step is None:
        return times_gain(stored.values, stored.gain)
    codes = packing.unpack(stored.values[None], bits, len(group))[0].float()
    return times_gain(stored.step, stored.gain)[group] * (codes - mid_level(bits))


def store_like(like: Stored, values: Tensor, group: Tensor, bits: int) -> Stored:
    """Other values with the steps and the gain of stored ones."""
    if like.step is None:
        return Stored(
            like.gain, (values / like.gain).clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16).half(), None
        )
    found = _codes(values, times_gain(like.step, like.gain)[group], bits)
    return Stored(like.gain, packing.pack(found[None], bits)[0], like.step)


def rounded(like: Stored, values: Tensor, group: Tensor, bits: int) -> Tensor:
    """What `read` gives of `store_like`."""
    if like.step is None:
        return read(store_like(like, values, group, bits), group, bits)
    own = times_gain(like.step, like.gain)[group]
    return own * (_codes(values, own, bits).float() - mid_level(bits))


def _best_steps(values: Tensor, group: Tensor, peak: Tensor, bits: int) -> Tensor:
    """For each group the fraction of its peak with the least squared error."""
    best, least = peak, torch.full_like(peak, torch.inf)
    for fraction in FRACTIONS:
        step = peak * fraction
        own = step[group]
        found = own * (_codes(values, own, bits).float() - mid_level(bits))
        error = torch.zeros_like(peak).index_add_(0, group, (found - values).square())
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best


def _codes(values: Tensor, step: Tensor, bits: int) -> Tensor:
    scaled = values / step.where(step > 0, 1.0) + mid_level(bits)
    return scaled.round().clamp(0, (1 << bits) - 1).to(torch.uint8)


def part_shapes(
    values: str, steps: str, bits: int, count: int, groups: int
) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Which tensors so many numbers take: a part `values`, and `steps` where there are codes."""
    if bits == 16:
        return {values: (torch.float16, (count,))}
    packed = packing.packed_bytes(count, bits)
    return {values: (torch.uint8, (packed,)), steps: (torch.float16, (groups,))}


def codes(values: Tensor, bits: int, count: int) -> Tensor:
    """Stored codes, a byte each: uint8 [count]."""
    return packing.unpack(values[None], bits, count)[0]
