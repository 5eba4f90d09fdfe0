"""Log-probabilities of chosen and alternative tokens, from the model's own (raw) logits.

Does not know requests: a row of logits, a token and a number of alternatives go in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki.engine.request import TokenLogprobs


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], alternatives: Sequence[int]
) -> list[TokenLogprobs]:
    """For each row of `logits` (float32 [n, vocab]): its token, its rank, and the most likely ones.

    `alternatives[i]` says how many of those row i wants (0: none).
    """
    tokens = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    norm = logits.logsumexp(dim=-1, keepdim=True)
    chosen = logits.gather(1, tokens[:, None])
    ranks = (logits > chosen).sum(dim=-1).add_(1).tolist()
    logprobs = (chosen - norm)[:, 0].tolist()
    width = min(max(alternatives), logits.shape[1])
    values, ids = logits.topk(width, dim=-1)
    top_logprobs, top_ids = (values - norm).tolist(), ids.tolist()
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, rank, ids, values, count in zip(
            token_ids, logprobs, ranks, top_ids, top_logprobs, alternatives, strict=True
        )
    ]
