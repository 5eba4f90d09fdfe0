"""What a request may change about its logits before a token is chosen: bias, penalties, min_tokens.

Owns: these rules, applied in place to all rows of a step at once. Does not know temperature or
randomness (sampler.py).
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.engine.request import Request, SamplingParams


class Change(NamedTuple):
    """What happens to some logits of one row."""

    row: int
    token_ids: NDArray[np.int64]
    values: NDArray[np.float64]  # as many


def changes_logits(params: SamplingParams) -> bool:
    """Whether `process` could do anything for a request with these parameters."""
    return (
        params.min_tokens > 0
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or bool(params.logit_bias)
    )


def process(logits: Tensor, requests: Sequence[Request]) -> None:
    """Apply every request's bias and penalties to its row of `logits` (float32 [n, vocab])."""
    rows = [(row, r) for row, r in enumerate(requests) if changes_logits(r.params)]
    _add(logits, (_biases(row, r) for row, r in rows if r.params.logit_bias))
    _repetition(logits, rows)
    _add(logits, (_presence_and_frequency(row, r) for row, r in rows if _counts_output(r)))
    _add(logits, (_forbidden_stops(row, r) for row, r in rows if _may_not_stop(r)))


def _biases(row: int, request: Request) -> Change:
    tokens, values = zip(*request.params.logit_bias, strict=True)
    return Change(row, np.array(tokens, dtype=np.int64), np.array(values, dtype=np.float64))


def _counts_output(request: Request) -> bool:
    params = request.params
    return bool(params.presence_penalty or params.frequency_penalty) and bool(
        request.output_token_ids
    )


def _presence_and_frequency(row: int, request: Request) -> Change:
    """OpenAI's: over generated tokens, logit -= presence + frequency * count."""
    params = request.params
    tokens, counts = np.unique(request.output_token_ids, return_counts=True)
    penalties = params.presence_penalty + params.frequency_penalty * counts.astype(np.float64)
    return Change(row, tokens, -penalties)


def _may_not_stop(request: Request) -> bool:
    return len(request.output_token_ids) < request.params.min_tokens


def _forbidden_stops(row: int, request: Request) -> Change:
    return _same_for_all(row, request.params.stop_token_ids, float("-inf"))


def _same_for_all(row: int, token_ids: Collection[int], value: float) -> Change:
    tokens = np.fromiter(token_ids, dtype=np.int64, count=len(token_ids))
    return Change(row, tokens, np.full(len(tokens), value))


def _repetition(logits: Tensor, rows: Iterable[tuple[int, Request]]) -> None:
    """CTRL (Keskar et al. 2019, section 4.1): over prompt and output, a positive logit is divided
    by the penalty and a negative one multiplied."""
    changes = [
        _same_for_all(row, {*r.prompt_token_ids, *r.output_token_ids}, r.params.repetition_penalty)
        for row, r in rows
        if r.params.repetition_penalty != 1.0
    ]
    if changes:
        index, penalties = _columns(logits, changes)
        old = logits[index]
        logits[index] = torch.where(old > 0, old / penalties, old * penalties)


def _add(logits: Tensor, changes: Iterable[Change]) -> None:
    known = list(changes)
    if known:
        index, values = _columns(logits, known)
        logits.index_put_(index, values, accumulate=True)


def _columns(logits: Tensor, changes: Sequence[Change]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """All changes as one index and its values; tokens beyond this step's logits are left out."""
    rows = np.repeat([change.row for change in changes], [len(c.token_ids) for c in changes])
    tokens = np.concatenate([change.token_ids for change in changes])
    values = np.concatenate([change.values for change in changes]).astype(np.float32)
    inside = tokens < logits.shape[1]
    columns = (torch.from_numpy(column[inside]) for column in (rows, tokens, values))
    rows_at, tokens_at, values_at = (column.to(logits.device) for column in columns)
    return (rows_at, tokens_at), values_at
