"""What operations take beside tensors: where rows stand, what is drawn and how.

Owns: those records. The formulas that read them are in interface.py.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ColumnDraw:
    """The kept columns of a mask, as docs/format.md 5.2 defines them."""

    seed: int  # 0 .. 2^64 - 1
    identity: int  # of the module, 0 .. 2^64 - 1
    tiles: int
    columns: int  # <= 65536
    group_size: int
    kept: int  # of every whole group
    kept_of_rest: int  # of the columns after the last whole group, where there are any


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the rows of a step stand in the paged KV cache.

    Sequence s owns query rows `query_start[s] : query_start[s + 1]`; they are its newest tokens, so
    row i of it has position `context[s] - (query_start[s + 1] - i)`, counted from 0. Token p of s
    lives in block `block_tables[s, p // block_size]`, place `p % block_size`.
    """

    query_start: Tensor  # int32 [sequences + 1]
    context: Tensor  # int32 [sequences], tokens in the cache, the rows of this step included
    block_tables: Tensor  # int32 [sequences, max blocks], unused entries 0
    slots: Tensor  # int64 [rows], block * block_size + place where each row's K and V go
    block_size: int


@dataclass(frozen=True, slots=True)
class Draws:
    """How the next tokens of n rows of logits are chosen; every member is contiguous, [n]."""

    rows: Tensor  # int64: which rows of the logits
    temperature: Tensor  # float32; 0: the likeliest token, the first of equals
    top_k: Tensor  # int64; 0: all
    top_p: Tensor  # float32 in (0, 1]
    min_p: Tensor  # float32 in [0, 1]
    points: Tensor  # float64 in [0, 1 - 2^-32], the random numbers


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of n tokens, and of the likeliest tokens beside each."""

    logprobs: Tensor  # float32 [n]
    ranks: Tensor  # int64 [n]; 1: none is likelier
    top_logprobs: Tensor  # float32 [n, width], descending
    top_ids: Tensor  # int64 [n, width]; the first of equals first
