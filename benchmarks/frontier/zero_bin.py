"""Ternary survivors with a wide zero, entropy coded: what deltadq could become, as an experiment.

Seeded masks of 16 rows as deltadq has them; a survivor is -c, 0 or +c by a threshold of
`THRESHOLDS` standard deviations of its rows. Priced at the entropy of the codes (an ideal static
coder): no file of ours holds this, and in memory the codes would take 2 bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.frontier.approximation import Approximation, Asked
from benchmarks.frontier.quantizers import entropy
from tsugiki.codecs.deltadq_layout import column_indices, gather_survivors, tiled
from tsugiki.codecs.masks import Mask
from tsugiki.codecs.quantize import matching_gain, pack_bias
from tsugiki.compress.budget import deltadq_candidates

ROWS = 16
STEP_BITS, BIAS_BITS = 16, 6


def zero_bin(threshold: float) -> Callable[[Asked], Approximation | None]:
    """The method with this threshold."""

    def method(asked: Asked) -> Approximation | None:
        return _ternary(asked, threshold)

    return method


def _ternary(asked: Asked, threshold: float) -> Approximation | None:
    rows, columns = asked.base.shape
    beside = STEP_BITS * -(-rows // ROWS) + (BIAS_BITS * rows if asked.stats else 0)
    everything = Mask(asked.seed, asked.name, rows, columns, 1, 1, ROWS)
    levels, _ = _codes(tiled(asked.delta, everything).flatten(1), threshold)
    rate = (asked.limit - beside) / (rows * columns * entropy(_counts(levels)))
    mask = _mask(asked, rate)
    if mask is None:
        return None
    levels, steps = _codes(tiled(gather_survivors(asked.delta, mask), mask).flatten(1), threshold)
    dense = _scattered((levels * steps[:, None]).view(mask.tiles, ROWS, -1), mask)
    dense *= matching_gain(dense, asked.delta)
    bits = levels.numel() * entropy(_counts(levels)) + beside
    bias = None
    if asked.stats is not None:
        bias = rounded((asked.delta - dense) @ asked.stats.mean, BIAS_BITS)
    return Approximation(dense, bits, bits, bias)


def _mask(asked: Asked, rate: float) -> Mask | None:
    """The mask that keeps the most, but at most `rate` of the entries."""
    rows, columns = asked.base.shape
    masks = (
        Mask(asked.seed, asked.name, rows, columns, c["alpha"], c["group_size"], ROWS)
        for c in deltadq_candidates({"bits": 1})
        if c["bits"] == 1 and c["group_size"] <= columns
    )
    within = [mask for mask in masks if mask.kept <= rate * columns]
    return max(within, key=lambda mask: mask.kept, default=None)


def _codes(values: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """-1, 0 or 1 for each value of [blocks, n], and the mean of what is not 0, [blocks]."""
    limit = threshold * values.square().mean(1, keepdim=True).sqrt()
    levels = values.sign() * (values.abs() > limit)
    counts = levels.abs().sum(1).clamp_min(1)
    return levels, (values * levels).sum(1) / counts


def _counts(levels: Tensor) -> Tensor:
    return torch.stack([(levels == level).sum() for level in (-1, 0, 1)])


def _scattered(values: Tensor, mask: Mask) -> Tensor:
    """[tiles, rows, kept] at the kept columns of the dense matrix."""
    dense = torch.zeros(mask.tiles, mask.rows_per_mask, mask.columns)
    dense.scatter_(2, column_indices(mask), values)
    return dense.view(-1, mask.columns)[: mask.rows]


def rounded(bias: Tensor, bits: int) -> Tensor:
    """A bias float32 [out] as codes of so many bits would have it."""
    scale = pack_bias(bias, bits).scale
    half = 1 << (bits - 1)
    return (bias / scale).round().clamp(-half, half - 1) * scale if scale else bias
