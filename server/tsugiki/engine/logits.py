"""What a request may change about its logits before a token is chosen: bias, penalties, min_tokens.

Owns: these rules, applied in place to all rows of a step at once. Does not know temperature or
randomness (sampler.py).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from tsugiki.engine.request import Request, SamplingParams

Entry = tuple[int, int, float]  # row, token id, value


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
    _add(logits, (e for row, r in rows for e in _biases(row, r)))
    _repetition(logits, rows)
    _add(logits, (e for row, r in rows for e in _presence_and_frequency(row, r)))
    _add(logits, (e for row, r in rows for e in _forbidden_stops(row, r)))


def _biases(row: int, request: Request) -> Iterable[Entry]:
    return ((row, token, bias) for token, bias in request.params.logit_bias)


def _presence_and_frequency(row: int, request: Request) -> Iterable[Entry]:
    """OpenAI's: over generated tokens, logit -= presence + frequency * count."""
    params = request.params
    if not (params.presence_penalty or params.frequency_penalty) or not request.output_token_ids:
        return ()
    tokens, counts = np.unique(request.output_token_ids, return_counts=True)
    values = -(params.presence_penalty + params.frequency_penalty * counts)
    return zip([row] * len(tokens), tokens.tolist(), values.tolist(), strict=True)


def _forbidden_stops(row: int, request: Request) -> Iterable[Entry]:
    if len(request.output_token_ids) >= request.params.min_tokens:
        return ()
    return ((row, token, float("-inf")) for token in request.params.stop_token_ids)


def _repetition(logits: Tensor, rows: Iterable[tuple[int, Request]]) -> None:
    """CTRL (Keskar et al. 2019, section 4.1): over prompt and output, a positive logit is divided
    by the penalty and a negative one multiplied."""
    entries: list[Entry] = []
    for row, request in rows:
        penalty = request.params.repetition_penalty
        if penalty != 1.0:
            seen = {*request.prompt_token_ids, *request.output_token_ids}
            entries += ((row, token, penalty) for token in seen)
    if entries:
        index, penalties = _columns(logits, entries)
        old = logits[index]
        logits[index] = torch.where(old > 0, old / penalties, old * penalties)


def _add(logits: Tensor, entries: Iterable[Entry]) -> None:
    known = list(entries)
    if known:
        index, values = _columns(logits, known)
        logits.index_put_(index, values, accumulate=True)


def _columns(logits: Tensor, entries: list[Entry]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Entries as index and values; tokens that this step's logits do not reach are left out."""
    inside = [entry for entry in entries if entry[1] < logits.shape[1]]
    table = torch.tensor(inside, dtype=torch.float64, device=logits.device).reshape(-1, 3)
    rows, tokens = table[:, 0].long(), table[:, 1].long()
    return (rows, tokens), table[:, 2].to(logits.dtype)
