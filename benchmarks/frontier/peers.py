"""Other people's delta codecs, as plain torch functions: what their papers say, without training.

Owns: their settings at a size. Sources stand at each function. Where a step of a paper is left out
(calibrated rounding, training) its function says so; none is left out that positions or scales
would pay for.
"""

import math

import torch
from torch import Tensor

from benchmarks.frontier.approximation import SEED_BITS, Approximation, Asked
from benchmarks.frontier.quantizers import binary_entropy, grouped_bits, grouped_minmax, minmax
from tsugiki.codecs.quantize import matching_gain

FLOAT_BITS = 16
VALUE_BITS = 4
STEPS = 40  # of a bisection
# Squared error of k-bit codes relative to what they code; 0 bits lose all of it.
LOSS = {0: 1.0, 2: 0.2, 3: 0.05, 4: 0.0125, 8: 1e-4}


def dare(asked: Asked) -> Approximation | None:
    """DARE (arXiv 2311.03099): drop at random, rescale by 1 / (1 - p); 16-bit values. The mask is
    regenerated from a seed, though the paper stores it."""
    keep = min(1.0, asked.size / FLOAT_BITS)
    generator = torch.Generator().manual_seed(asked.seed * 1_000_003 + len(asked.name))
    mask = (torch.rand(asked.base.shape, generator=generator) < keep).to(asked.base.device)
    kept = (asked.delta / keep).bfloat16().float() * mask
    bits = float(mask.sum()) * FLOAT_BITS + SEED_BITS
    return Approximation(kept, bits, bits - SEED_BITS)


def magnitude(asked: Asked) -> Approximation | None:
    """The largest entries: 4-bit values, positions at their entropy, gain matched as ours."""
    keep = _share_within(asked.size, VALUE_BITS)
    count = max(1, int(keep * asked.delta.numel()))
    threshold = asked.delta.abs().flatten().kthvalue(asked.delta.numel() - count + 1).values
    kept = torch.where(asked.delta.abs() >= threshold, asked.delta, 0.0)
    coded = _coded_entries(kept, VALUE_BITS)
    gained = coded * matching_gain(coded, asked.delta)
    return _with_positions(gained, int((kept != 0).sum()), VALUE_BITS)


def ultradelta(asked: Asked) -> Approximation | None:
    """UltraDelta (arXiv 2505.13563) in style: min-max codes of 4 bits, then the same share of each
    level dropped at random, rescaled. Positions depend on values: they cost their entropy. Without
    its allocation over layers."""
    keep = _share_within(asked.size, VALUE_BITS)
    codes = minmax(asked.delta.flatten()[None], VALUE_BITS)[0]
    generator = torch.Generator().manual_seed(asked.seed * 1_000_003 + len(asked.name))
    mask = torch.zeros_like(codes, dtype=torch.bool)
    for level in torch.unique(codes):
        places = (codes == level).nonzero()[:, 0]
        count = round(keep * len(places))
        drawn = torch.randperm(len(places), generator=generator)[:count]
        mask[places[drawn.to(places.device)]] = True
    kept = torch.where(mask, codes / keep, 0.0).view_as(asked.delta)
    return _with_positions(kept, int(mask.sum()), VALUE_BITS)


class MixedSvd:
    """Delta-CoMe (arXiv 2406.08903) in style: singular vectors in 8, 4, 3 or 2 bits by their
    energy, the rest dropped. Bits are chosen by Lagrangian cost as PrinMix (arXiv 2506.11087)
    chooses them, which is at least as good as fixed thirds; without calibrated rounding.

    Keeps the decompositions of a fine-tune, for they cost most of the time.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, asked: Asked) -> Approximation | None:
        """See `Method`."""
        if asked.name not in self._known:
            u, s, v = torch.linalg.svd(asked.delta, full_matrices=False)
            self._known[asked.name] = (u, s, v)
        u, s, v = self._known[asked.name]
        price = {b: _vector_bits(asked, b) for b in LOSS}
        chosen = _bits_within(s.square(), price, asked.limit)
        widths = chosen.tolist()
        bits = sum(price[width] for width in widths)
        if not bits:
            return None
        total = torch.zeros_like(asked.delta)
        for width in (2, 3, 4, 8):
            of = chosen == width
            if not bool(of.any()):
                continue
            left = grouped_minmax((u[:, of] * s[of].sqrt()).T.contiguous(), width)
            right = grouped_minmax(s[of].sqrt()[:, None] * v[of], width)
            total += left.T @ right
        nominal = float(sum(widths) * sum(asked.base.shape))
        return Approximation(total, bits, nominal)


def _vector_bits(asked: Asked, bits: int) -> float:
    """Of one pair of singular vectors; the singular value is in both."""
    return sum(grouped_bits(length, bits) for length in asked.delta.shape) if bits else 0.0


def _bits_within(energy: Tensor, price: dict[int, float], limit: float) -> Tensor:
    """int64 [rank]: bits of each vector, the least loss within the limit by Lagrangian cost."""
    device, offered = energy.device, sorted(price)
    widths = torch.tensor(offered, device=device)
    loss = torch.tensor([LOSS[w] for w in offered], device=device)
    cost = torch.tensor([price[w] for w in offered], device=device)
    low, high = -60.0, 60.0  # log2 of the price of a bit in energy
    for _ in range(STEPS):
        middle = (low + high) / 2
        picks = (energy[:, None] * loss + 2.0**middle * cost).argmin(1)
        low, high = (low, middle) if float(cost[picks].sum()) <= limit else (middle, high)
    return widths[(energy[:, None] * loss + 2.0**high * cost).argmin(1)]


def _share_within(size: float, bits: int) -> float:
    """The share p of entries whose values and positions take `size`: bits p + H(p) = size."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if bits * middle + _h(middle) > size else (middle, high)
    return low


def _h(share: float) -> float:
    return binary_entropy(share) if 0 < share < 1 else 0.0


def _coded_entries(sparse: Tensor, bits: int) -> Tensor:
    """The non-zero entries in min-max codes of the tensor."""
    places = sparse != 0
    coded = torch.zeros_like(sparse)
    coded[places] = minmax(sparse[places][None], bits)[0]
    return coded


def _with_positions(kept: Tensor, count: int, bits: int) -> Approximation:
    positions = kept.numel() * _h(count / kept.numel())
    values = float(count * bits)
    return Approximation(kept, values + math.ceil(positions) + 2 * FLOAT_BITS, values)
