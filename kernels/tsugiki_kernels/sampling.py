"""What sampling means, in plain torch on any device: the oracle for the compiled backends.

Owns: the choice of one token per row, and log-probabilities of tokens. Does not know requests,
seeds or penalties.
"""

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_column
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import Draws, Logprobs


def check_draws(logits: Tensor, draws: Draws) -> None:
    """What KernelBackend.sample demands.

    Raises:
        BadArgument: naming the argument.
    """
    check_rows(logits, draws.rows)
    expected = {
        "temperature": torch.float32,
        "top_k": torch.int64,
        "top_p": torch.float32,
        "min_p": torch.float32,
        "points": torch.float64,
    }
    for name, dtype in expected.items():
        check_column(name, getattr(draws, name), dtype, len(draws.rows))


def check_rows(logits: Tensor, rows: Tensor) -> None:
    """Logits that can be read by rows, and rows that they have.

    Raises:
        BadArgument: naming the argument.
    """
    if logits.ndim != 2 or logits.dtype not in ACTIVATIONS or logits.stride(1) != 1:
        raise BadArgument(
            f"logits: expected float32, bfloat16 or float16 [rows, vocabulary] of unit stride in "
            f"the last dimension, found {logits.dtype} {tuple(logits.shape)}"
        )
    check_column("rows", rows, torch.int64, len(rows))
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(logits):
        raise BadArgument(f"rows: expected rows of {len(logits)}, found {rows.tolist()}")


def check_tokens(logits: Tensor, token_ids: Tensor, count: int, width: int) -> None:
    """What KernelBackend.logprobs demands of the tokens asked about.

    Raises:
        BadArgument: naming the argument.
    """
    vocabulary = logits.shape[1]
    check_column("token_ids", token_ids, torch.int64, count)
    if count and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < vocabulary:
        raise BadArgument(f"token_ids: expected ids below {vocabulary}, found {token_ids.tolist()}")
    if not 0 <= width <= vocabulary:
        raise BadArgument(f"width: expected 0 to {vocabulary}, found {width}")


def sample(logits: Tensor, draws: Draws) -> Tensor:
    """See KernelBackend.sample.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_draws(logits, draws)
    rows = logits[draws.rows].float()
    top, token_ids = rows.max(dim=-1)
    random = (draws.temperature > 0) & top.isfinite()
    if random.any():
        chosen = Draws(*(getattr(draws, name)[random] for name in draws.__slots__))
        scores = (rows[random] - top[random, None]) / chosen.temperature[:, None]
        token_ids[random] = _draw(scores.exp().double(), chosen)
    return torch.where(top.isfinite(), token_ids, -1)


def _draw(weights: Tensor, draws: Draws) -> Tensor:
    """int64 [n]: in the order of the vocabulary, the first token whose running sum of what is kept
    exceeds its point. weights: float64 [n, vocabulary], relative to the likeliest."""
    kept = torch.where(weights >= cutoffs(weights, draws)[:, None], weights, 0.0)
    running = kept.cumsum(dim=-1)
    return (running <= (draws.points * running[:, -1])[:, None]).sum(dim=-1)


def cutoffs(weights: Tensor, draws: Draws) -> Tensor:
    """float64 [n]: what weighs less is left out.

    top_k keeps the k largest, top_p of those the smallest set with so much of their sum, min_p what
    has so much of the likeliest. Equally likely tokens stay or go together.
    """
    vocabulary = weights.shape[1]
    descending = weights.sort(dim=-1, descending=True).values
    count = torch.where(draws.top_k > 0, draws.top_k.clamp(max=vocabulary), vocabulary)
    counted = torch.arange(vocabulary, device=weights.device) < count[:, None]
    running = (descending * counted).cumsum(dim=-1)
    wanted = draws.top_p.double() * running[:, -1]
    enough = torch.where(draws.top_p < 1, (running < wanted[:, None]).sum(dim=-1), vocabulary)
    last = torch.minimum(enough, count - 1)
    return torch.maximum(descending.gather(1, last[:, None])[:, 0], draws.min_p.double())


def logprobs(logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
    """See KernelBackend.logprobs.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_rows(logits, rows)
    check_tokens(logits, token_ids, len(rows), width)
    values = logits[rows].float()
    norm = values.logsumexp(dim=-1, keepdim=True)
    chosen = values.gather(1, token_ids[:, None])
    ranks = (values > chosen).sum(dim=-1) + 1
    best, ids = values.sort(dim=-1, descending=True, stable=True)
    return Logprobs((chosen - norm)[:, 0], ranks, best[:, :width] - norm, ids[:, :width])
