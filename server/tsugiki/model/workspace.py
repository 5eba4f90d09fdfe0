"""The activations of a step, in buffers that outlive it.

Owns: `Workspace`, which hands out views and grows, and the two sets of tensors that a recorded step
reads and writes. Steps follow each other, so all of them share one workspace. Does not know: what
is computed in them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.model.architecture import Architecture
from tsugiki.model.batch import Batch
from tsugiki_kernels.operands import AttentionBatch


class Workspace:
    """One buffer for each use, as large as the largest step so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self.growths = 0  # a view from before the last growth of its buffer is stale

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor; the next call of the same use gives the same memory.

        Two dtypes of one use are two buffers.
        """
        key, size = f"{use} {dtype}", math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < size:
            # at least twice as large as before: whatever was recorded is lost with a growth
            size_of_buffer = size if buffer is None else max(size, 2 * len(buffer))
            buffer = torch.empty(size_of_buffer, dtype=dtype, device=self._device)
            self._buffers[key] = buffer
            self.growths += 1
        return buffer[:size].view(*shape)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What differs from run to run of one recorded step; filled before each."""

    hidden: Tensor  # [rows, hidden]: the embedded tokens; layers add to it
    rotations: tuple[Tensor, ...]  # per distinct rope: [2, rows, head_dim]
    where: AttentionBatch
    norms: Tensor  # int64 [rows]: the place of each row's norms
    logit_rows: Tensor  # int64 [n], of the step
    logit_norms: Tensor  # int64 [n]

    def fill(self, hidden: Tensor, rotations: Sequence[Tensor], where: AttentionBatch) -> None:
        """Copy a step's own values in."""
        self.hidden.copy_(hidden)
        for mine, new in zip(self.rotations, rotations, strict=True):
            mine.copy_(new)
        self.where.query_start.copy_(where.query_start)
        self.where.context.copy_(where.context)
        self.where.slots.copy_(where.slots)
        self.where.block_tables[:, : where.block_tables.shape[1]].copy_(where.block_tables)

    def fill_rows(self, logit_rows: Tensor, norms: Tensor | None) -> None:
        """Which rows' logits are wanted, and where each row's norms stand (int64 [rows], on the
        CPU; None: nobody reads it)."""
        self.logit_rows.copy_(logit_rows)
        if norms is not None:
            self.norms.copy_(norms)
            self.logit_norms.copy_(norms[logit_rows])


@dataclass(frozen=True, slots=True)
class Heads:
    """Views by head, each [rows, its heads, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    rotated: Tensor  # q and k together
    attended: Tensor


@dataclass(frozen=True, slots=True)
class Activations:
    """What lies between the operations of a layer, each written and read once."""

    normed: Tensor  # [rows, hidden]
    qkv: Tensor  # [rows, (heads + 2 kv_heads) * head_dim]
    heads: Heads  # of qkv and attended
    attended: Tensor  # [rows, heads * head_dim]
    branch: Tensor  # [rows, hidden]: what attention or mlp adds to the hidden state
    gate_up: Tensor  # [rows, 2 * intermediate]
    gated: Tensor  # [rows, intermediate]


def take_inputs(
    space: Workspace, a: Architecture, dtype: torch.dtype, ropes: int, batch: Batch
) -> Inputs:
    """Room for the inputs of steps of the same shape, table width rounded up."""
    where, logits = batch.attention, len(batch.logit_rows)
    rows, sequences = len(where.slots), len(where.context)
    width = table_width(where)
    return Inputs(
        hidden=space.take("hidden", (rows, a.hidden_size), dtype),
        rotations=tuple(
            space.take(f"rotations of rope {i}", (2, rows, a.head_dim), dtype) for i in range(ropes)
        ),
        where=AttentionBatch(
            query_start=space.take("query_start", (sequences + 1,), torch.int32),
            context=space.take("context", (sequences,), torch.int32),
            block_tables=space.take("block_tables", (sequences, width), torch.int32),
            slots=space.take("slots", (rows,), torch.int64),
            block_size=where.block_size,
        ),
        norms=space.take("places of norms", (rows,), torch.int64),
        logit_rows=space.take("logit rows", (logits,), torch.int64),
        logit_norms=space.take("places of last norms", (logits,), torch.int64),
    )


def table_width(where: AttentionBatch) -> int:
    """Blocks that a recorded step has room for: a power of two, so that growing contexts seldom
    need another recording."""
    return int(2 ** math.ceil(math.log2(max(8, where.block_tables.shape[1]))))


def take_activations(
    space: Workspace, a: Architecture, dtype: torch.dtype, rows: int
) -> Activations:
    """Room for one layer at a time."""
    widths = {
        "normed": a.hidden_size,
        "qkv": a.q_size + 2 * a.kv_size,
        "attended": a.q_size,
        "branch": a.hidden_size,
        "gate_up": 2 * a.intermediate_size,
        "gated": a.intermediate_size,
    }
    taken = {use: space.take(use, (rows, width), dtype) for use, width in widths.items()}
    return Activations(**taken, heads=_heads(a, taken["qkv"], taken["attended"]))


def _heads(a: Architecture, qkv: Tensor, attended: Tensor) -> Heads:
    heads = qkv.view(len(qkv), a.num_heads + 2 * a.num_kv_heads, a.head_dim)
    q, k, v = heads.tensor_split((a.num_heads, a.num_heads + a.num_kv_heads), 1)
    return Heads(q, k, v, heads[:, : -a.num_kv_heads], attended.view(q.shape))
