"""Tokens from logits on the GPU: argument checks and launches.

Owns: nothing but these; what sampling means is said in interface.py.

A block takes a row. It passes over the logits once for the likeliest token, twice to draw, and up
to 31 times each for top_k and top_p, which stop as soon as few tokens are left to choose among; for
log-probabilities once for each of the `width` likeliest. Whoever asks waits for the result anyway:
so the values of rows and token ids are checked, for which the host waits too.
"""

import torch
from torch import Tensor

from tsugiki_kernels.cuda.arguments import dtype_name
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Int32, Int64, Launcher
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import Draws, Logprobs
from tsugiki_kernels.sampling import check_draws, check_rows, check_tokens

LARGEST_VOCABULARY = 2**18  # sums of weights are 64-bit integers of 2^-45


def sample(launcher: Launcher, logits: Tensor, draws: Draws) -> Tensor:
    """See KernelBackend.sample.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_draws(logits, draws)
    count = len(draws.rows)
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    if count:
        start(
            launcher,
            f"tsugiki_sample_{dtype_name('logits', logits)}",
            (
                *_rows(logits, draws.rows),
                *(draws.temperature, draws.top_k, draws.top_p, draws.min_p),
                *(draws.points, tokens),
            ),
            rows=count,
        )
    return tokens


def logprobs(
    launcher: Launcher, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int
) -> Logprobs:
    """See KernelBackend.logprobs.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    count, device = len(rows), logits.device
    check_rows(logits, rows)
    check_tokens(logits, token_ids, count, width)
    found = Logprobs(
        logprobs=torch.empty(count, device=device),
        ranks=torch.empty(count, dtype=torch.int64, device=device),
        top_logprobs=torch.empty(count, width, device=device),
        top_ids=torch.empty(count, width, dtype=torch.int64, device=device),
    )
    if count:
        start(
            launcher,
            f"tsugiki_logprobs_{dtype_name('logits', logits)}",
            (
                *(*_rows(logits, rows), token_ids, Int32(width)),
                *(found.logprobs, found.ranks, found.top_logprobs, found.top_ids),
            ),
            rows=count,
        )
    return found


def _rows(logits: Tensor, rows: Tensor) -> tuple[Tensor, Int64, Int32, Tensor]:
    vocabulary = logits.shape[1]
    if not 0 < vocabulary <= LARGEST_VOCABULARY:
        raise BadArgument(
            f"logits: expected a vocabulary of 1 to {LARGEST_VOCABULARY}, found {vocabulary}"
        )
    return logits, Int64(logits.stride(0)), Int32(vocabulary), rows
