"""Chooses the next token of every row of a step.

Owns: greedy choice, temperature and the random numbers, which draw.py turns into tokens. The same
request with the same seed gets the same tokens alone, in a batch and after preemption: the number
that decides output position i depends on (seed, i) alone, and no row's arithmetic looks at others.
Does not know variants, text or stop conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.engine.draw import draw_filtered, draw_from_all
from tsugiki.engine.logits import changes_logits, process
from tsugiki.engine.logprobs import token_logprobs
from tsugiki.engine.request import Request, SamplingParams, TokenLogprobs

GREEDY_BELOW = 1e-5  # temperatures under it would overflow the division


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
        chosen = processed if len(random) == len(requests) else processed[random]
        token_ids[random] = _sample_random(chosen, [requests[row] for row in random])
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
    temperatures = torch.tensor([r.params.temperature for r in requests], device=logits.device)
    probabilities = _numpy((logits / temperatures[:, None]).softmax(dim=-1))
    points = uniforms([r.seed for r in requests], [len(r.output_token_ids) for r in requests])
    filtered = np.array([filters(r.params) for r in requests])
    token_ids = np.empty(len(requests), dtype=np.int64)
    if not filtered.all():
        token_ids[~filtered] = draw_from_all(probabilities[~filtered], points[~filtered])
    for row in np.flatnonzero(filtered).tolist():
        params = requests[row].params
        token_ids[row] = draw_filtered(
            probabilities[row],
            points[row],
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
        )
    return token_ids


def filters(params: SamplingParams) -> bool:
    """Whether top_k, top_p or min_p can leave a token out."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


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


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
