"""Log-probabilities of chosen and alternative tokens, from the model's own (raw) logits.

Does not know requests: rows of logits, a token and a number of alternatives for each go in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki.engine.request import TokenLogprobs
from tsugiki_kernels.interface import KernelBackend


def token_logprobs(
    kernels: KernelBackend,
    logits: Tensor,
    rows: Sequence[int],
    token_ids: Sequence[int],
    alternatives: Sequence[int],
) -> list[TokenLogprobs]:
    """For each of these rows of `logits` ([n, vocabulary]): its token, and the most likely ones.

    `alternatives[i]` says how many of those the i-th wants (0: none).
    """
    width = min(max(alternatives), logits.shape[1])
    found = kernels.logprobs(
        logits,
        torch.tensor(rows, dtype=torch.int64, device=logits.device),
        torch.tensor(token_ids, dtype=torch.int64, device=logits.device),
        width,
    )
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, rank, ids, values, count in zip(
            token_ids,
            found.logprobs.tolist(),
            found.ranks.tolist(),
            found.top_ids.tolist(),
            found.top_logprobs.tolist(),
            alternatives,
            strict=True,
        )
    ]
