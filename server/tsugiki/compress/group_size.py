"""Choosing DeltaDQ's group size h, by the paper's attention error or by an analytic variance.

Owns: the candidates and the two criteria (DeltaDQ, arXiv 2410.08666, "Group-wise Dropout"; the
analytic one follows from the same mask). Does not know: how a delta is packed, files.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs.base import ModuleStats

Reconstruct = Callable[[str, int], Tensor]  # (weight name, group size) -> float32 dropped weight


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What the attention error of one layer is computed from."""

    query: str  # names of the weights
    key: str
    inputs: Tensor  # float32 [tokens, hidden]: what q_proj and k_proj read
    tuned_query: Tensor  # float32 [heads * head_dim, hidden]
    tuned_key: Tensor  # float32 [kv_heads * head_dim, hidden]
    head_dim: int


def candidates(alpha: int, width: int) -> list[int]:
    """alpha, 2 alpha, 4 alpha ... below the width of the input, and the whole row."""
    sizes = []
    size = alpha
    while size < width:
        sizes.append(size)
        size *= 2
    return [*sizes, width]


def best_by_attention(
    layers: Iterable[AttentionInputs], sizes: Iterable[int], reconstruct: Reconstruct
) -> tuple[int, dict[int, float]]:
    """The size with the least |Q K^T - Q' K'^T|^2 over the given layers, and all errors.

    Per attention head, before rotary positions and bias, which are the same on both sides.
    """
    layers = list(layers)
    errors = {size: sum(_attention_error(x, size, reconstruct) for x in layers) for size in sizes}
    return min(errors, key=lambda size: (errors[size], size)), errors


def _attention_error(layer: AttentionInputs, size: int, reconstruct: Reconstruct) -> float:
    exact = _scores(layer, layer.tuned_query, layer.tuned_key)
    approximate = _scores(layer, reconstruct(layer.query, size), reconstruct(layer.key, size))
    return float((exact - approximate).square().sum(dtype=torch.float64))


def _scores(layer: AttentionInputs, query: Tensor, key: Tensor) -> Tensor:
    """Q K^T of every head: float32 [heads, tokens, tokens]."""
    tokens = len(layer.inputs)
    q = (layer.inputs @ query.T).view(tokens, -1, layer.head_dim).transpose(0, 1)
    k = (layer.inputs @ key.T).view(tokens, -1, layer.head_dim).transpose(0, 1)
    return q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2)


def best_by_variance(
    deltas: Callable[[], Iterable[tuple[str, Tensor]]],
    stats: Mapping[str, ModuleStats],
    alpha: int,
    sizes: Iterable[int],
) -> tuple[int, dict[int, float]]:
    """The size with the least dropout variance of the outputs, relative to each linear's own.

    `deltas()` walks (weight name, float32 [out, in]) of the linears, one at a time.
    """
    totals = dict.fromkeys(sizes, 0.0)
    for name, delta in deltas():
        found = {size: dropout_variance(delta, stats[name], alpha, size) for size in totals}
        scale = float((delta.square() @ stats[name].second_moment).sum()) or 1.0
        for size, variance in found.items():
            totals[size] += variance / scale
    return min(totals, key=lambda size: (totals[size], size)), totals


def dropout_variance(delta: Tensor, stats: ModuleStats, alpha: int, size: int) -> float:
    """Expected squared output error of exact-count dropout, summed over outputs.

    For one output i, z_j = D_ij x_j, keeping h / alpha of each group of h and rescaling by alpha:

        Var = (alpha - 1) h / (h - 1) sum over groups of sum over j of (z_j - mean of the group)^2

    Its expectation over x takes E[z_j z_k] = D_ij D_ik E[x_j] E[x_k] for j != k: covariances of
    channels are not collected.
    """
    if size < 2:
        return float("inf")
    mean, second = stats.mean, stats.second_moment
    power = _per_group(delta.square() * second, size)  # E[sum z^2]
    spread = _per_group(delta.square() * (second - mean.square()), size)
    total = _per_group(delta * mean, size).square() + spread  # E[(sum z)^2]
    width = torch.full((delta.shape[1],), 1.0)
    counts = _per_group(width[None], size)
    within = (power - total / counts) * counts / (counts - 1).clamp_min(1)
    return (alpha - 1) * float(within.sum(dtype=torch.float64))


def _per_group(values: Tensor, size: int) -> Tensor:
    """[rows, in] -> sums over consecutive groups [rows, groups]; the last may be short."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % size))
    return padded.view(len(values), -1, size).sum(2)
