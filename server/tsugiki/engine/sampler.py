"""Chooses the next token of every row of a step.

Owns: greedy choice, temperature, top_k, top_p, min_p and the random numbers. The same request with
the same seed gets the same tokens alone, in a batch and after preemption: the number that decides
output position i depends on (seed, i) alone, and no row's arithmetic looks at another row.
Does not know variants, text or stop conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.engine.logits import changes_logits, process
from tsugiki.engine.logprobs import token_logprobs
from tsugiki.engine.request import Request, TokenLogprobs

GREEDY_BELOW = 1e-5  # temperatures under it would overflow the division
# How many of the largest probabilities are looked at before a full sort, which is slow.
_CANDIDATES = (64, 1024)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's outcome. `finite` is False when the model gave no usable logits: no token then."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    finite: bool = True


def sample(logits: Tensor, requests: Sequence[Request]) -> list[Sampled]:
    """The next token of each request from its row of `logits` (float32 [n, vocab]).

    Entries of -inf are never chosen. `logits` are not changed.
    """
    # A NaN anywhere makes the largest value NaN; +inf and an all -inf row show there too.
    finite = np.isfinite(_numpy(logits.amax(dim=-1)))
    processed = logits
    if any(changes_logits(r.params) for r in requests):
        processed = logits.clone()
        process(processed, requests)
    token_ids = _argmax(processed)
    random = [
        row
        for row, r in enumerate(requests)
        if finite[row] and r.params.temperature >= GREEDY_BELOW
    ]
    if random:
        token_ids[random] = _sample_random(processed[random], [requests[row] for row in random])
    logprobs = _chosen_logprobs(logits, requests, token_ids)
    return [
        Sampled(token, logprobs.get(row), bool(ok))
        for row, (token, ok) in enumerate(zip(token_ids.tolist(), finite, strict=True))
    ]


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position), from nothing else.

    SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
    the mixed seed starts a stream whose element `position` is taken. 32 bits, so that a product
    with a float64 total stays below the total.
    """
    keys = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF for seed in seeds], dtype=np.uint64)
    steps = np.array(positions, dtype=np.uint64) + np.uint64(1)
    golden = np.uint64(0x9E37_79B9_7F4A_7C15)
    mixed = _mix(_mix(keys + golden) + steps * golden)
    return (mixed >> np.uint64(32)).astype(np.float64) / 2.0**32


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return z ^ (z >> np.uint64(31))


def _sample_random(logits: Tensor, requests: Sequence[Request]) -> NDArray[np.int64]:
    """Inverse transform sampling in the order of the vocabulary over what the filters leave."""
    params = [r.params for r in requests]
    temperature = _column(logits, [p.temperature for p in params])
    probabilities = (logits / temperature).softmax(dim=-1)
    smallest = smallest_kept(
        probabilities,
        top_k=np.array([p.top_k for p in params]),
        top_p=np.array([p.top_p for p in params]),
        min_p=np.array([p.min_p for p in params]),
    )
    if smallest is not None:
        probabilities = torch.where(probabilities >= smallest, probabilities, 0.0)
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    points = uniforms([r.seed for r in requests], [len(r.output_token_ids) for r in requests])
    targets = torch.from_numpy(points).to(logits.device)[:, None] * cumulative[:, -1:]
    return _numpy(torch.searchsorted(cumulative, targets, right=True)[:, 0])


def smallest_kept(
    probabilities: Tensor,
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float64],
    min_p: NDArray[np.float64],
) -> Tensor | None:
    """The least probability ([n, 1]) that top_k, then top_p, then min_p leave in; equals stay in
    together. None: nobody filters."""
    filtered = np.flatnonzero((top_k > 0) | (top_p < 1.0))
    if not filtered.size and not min_p.any():
        return None
    smallest = probabilities.amax(dim=-1, keepdim=True) * _column(probabilities, min_p)
    vocabulary = probabilities.shape[1]
    k = np.where(top_k > 0, np.minimum(top_k, vocabulary), vocabulary)
    for count in (*_CANDIDATES, vocabulary):
        if not filtered.size:
            break
        top = _numpy(probabilities[filtered].topk(min(count, vocabulary), dim=-1).values)
        bound, known = _nucleus(top, k[filtered], top_p[filtered], vocabulary)
        rows = filtered[known]
        smallest[rows] = torch.maximum(smallest[rows], _column(smallest, bound[known]))
        filtered = filtered[~known]
    return smallest


def _nucleus(
    top: NDArray[np.float32], k: NDArray[np.int64], top_p: NDArray[np.float64], vocabulary: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The last probability of the smallest set that holds top_p of the mass of the k largest, in
    rows of largest probabilities ([n, count], descending); and whether `count` sufficed."""
    rows, count = np.arange(len(top)), top.shape[1]
    cumulative = top.cumsum(axis=1, dtype=np.float64)
    inside = np.minimum(k, count) - 1
    wanted = top_p * np.where(k <= count, cumulative[rows, inside], 1.0)
    known = (k <= count) | ((k == vocabulary) & (cumulative[:, -1] >= wanted))
    last = np.minimum((cumulative < wanted[:, None]).sum(axis=1), inside)
    return top[rows, last], known


def _chosen_logprobs(
    logits: Tensor, requests: Sequence[Request], token_ids: NDArray[np.int64]
) -> dict[int, TokenLogprobs]:
    rows = [row for row, r in enumerate(requests) if r.params.logprobs is not None]
    if not rows:
        return {}
    wanted = [requests[row].params.logprobs or 0 for row in rows]
    return dict(
        zip(rows, token_logprobs(logits[rows], token_ids[rows].tolist(), wanted), strict=True)
    )


def _argmax(logits: Tensor) -> NDArray[np.int64]:
    """The first of the largest. On the CPU numpy's is six times as fast as torch's."""
    if logits.device.type == "cpu":
        return np.asarray(logits.numpy().argmax(axis=-1), dtype=np.int64)
    return _numpy(logits.argmax(dim=-1))


def _column(like: Tensor, values: Sequence[float] | NDArray[Any]) -> Tensor:
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
