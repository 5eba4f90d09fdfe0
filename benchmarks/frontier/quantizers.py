"""Quantizers that the peers share, in plain torch."""

import torch
from torch import Tensor

GROUP = 128  # values that share a scale and a zero point
GROUP_BITS = 32  # of both, in float16


def grouped_minmax(values: Tensor, bits: int) -> Tensor:
    """Min-max codes of groups of GROUP values along the last dimension, decoded again."""
    count = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -count % GROUP))
    groups = padded.view(*padded.shape[:-1], -1, GROUP)
    return minmax(groups, bits).flatten(-2)[..., :count]


def minmax(values: Tensor, bits: int) -> Tensor:
    """Uniform codes between the least and the largest value of the last dimension, decoded."""
    low = values.amin(-1, keepdim=True)
    step = (values.amax(-1, keepdim=True) - low) / (2**bits - 1)
    safe = step.clamp_min(torch.finfo(torch.float32).tiny)
    decoded: Tensor = ((values - low) / safe).round() * step + low
    return decoded


def grouped_bits(count: int, bits: int) -> float:
    """Bits of so many values coded by `grouped_minmax`."""
    return count * bits + -(-count // GROUP) * GROUP_BITS


def entropy(counts: Tensor) -> float:
    """Bits per symbol of an ideal static coder: -sum p log2 p."""
    seen = counts[counts > 0].double()
    share = seen / seen.sum()
    return float(-(share * share.log2()).sum())


def binary_entropy(share: float) -> float:
    """Bits that one yes or no costs when a share of them is yes."""
    return entropy(torch.tensor([share, 1 - share]))
