"""Chunks of requests -> one `Batch` for the decoder.

Owns: the order of rows and the index tensors of a step, and which of its logits are wanted. Does
not know queues, sampling or what a variant does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tsugiki.codecs.base import ResidentVariant
from tsugiki.engine.scheduler import Chunk
from tsugiki.model.batch import Batch, Segment
from tsugiki_kernels.interface import AttentionBatch

Variants = Mapping[str, ResidentVariant]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which rows of the logits belong to a chunk: those of its prompt, the one to sample from."""

    chunk: Chunk
    prompt: range  # rows whose next token is a prompt token that wants log-probabilities
    sampled: int | None


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch, and where its logits go. `logit_rows` has one entry per chunk, in batch order."""

    batch: Batch
    logit_rows: tuple[LogitRows, ...]


def build(
    chunks: Sequence[Chunk], variants: Variants, block_size: int, device: torch.device
) -> BatchPlan:
    """Lay the chunks out as rows: the base first, then by codec and variant, decode rows first.

    Raises:
        KeyError: a chunk whose variant is not among `variants`.
    """
    ordered = sorted(chunks, key=_row_order(variants))
    starts = np.zeros(len(ordered) + 1, dtype=np.int32)
    np.cumsum([chunk.num_tokens for chunk in ordered], out=starts[1:])
    positions = [np.arange(c.start, c.start + c.num_tokens) for c in ordered]
    tables = _block_tables(ordered)
    slots = [
        table[position // block_size].astype(np.int64) * block_size + position % block_size
        for table, position in zip(tables, positions, strict=True)
    ]
    token_ids = [t for c in ordered for t in c.request.tokens(c.start, c.start + c.num_tokens)]
    rows, logit_rows = _logit_rows(ordered, starts.tolist())
    to_device = _mover(device)
    batch = Batch(
        token_ids=to_device(np.array(token_ids, dtype=np.int64)),
        positions=to_device(np.concatenate(positions)),
        segments=_segments(ordered, variants),
        attention=AttentionBatch(
            query_start=to_device(starts),
            context=to_device(np.array([c.start + c.num_tokens for c in ordered], dtype=np.int32)),
            block_tables=to_device(tables),
            slots=to_device(np.concatenate(slots)),
            block_size=block_size,
        ),
        logit_rows=to_device(np.array(rows, dtype=np.int64)),
    )
    return BatchPlan(batch, logit_rows)


def _row_order(variants: Variants) -> Callable[[Chunk], tuple[str, str, int]]:
    def key(chunk: Chunk) -> tuple[str, str, int]:
        digest = chunk.request.variant.digest
        if digest is None:
            return ("", "", chunk.num_tokens)
        return (_codec_name(variants[digest]), digest, chunk.num_tokens)

    return key


def _codec_name(variant: ResidentVariant) -> str:
    """Neighbours of one codec can share a kernel call; a variant without linears goes anywhere."""
    linear = next(iter(variant.linears.values()), None)
    return "" if linear is None else linear.codec.name


def _segments(ordered: Sequence[Chunk], variants: Variants) -> tuple[Segment, ...]:
    """One segment for the base, one for all decode rows of a variant, one per longer chunk.

    Longer chunks stay apart so that fused or rebuilt follows from the request's own chunk alone.
    """
    segments: list[Segment] = []
    row = 0
    for chunk in ordered:
        digest, tokens = chunk.request.variant.digest, chunk.num_tokens
        variant = None if digest is None else variants[digest]
        last = segments[-1] if segments else None
        merges = last is not None and last.variant is variant and (digest is None or tokens == 1)
        if last is not None and merges:
            kind = max(last.chunk_tokens, tokens)
            segments[-1] = Segment(variant, last.start, row + tokens, kind)
        else:
            segments.append(Segment(variant, row, row + tokens, tokens))
        row += tokens
    return tuple(segments)


def _block_tables(ordered: Sequence[Chunk]) -> NDArray[np.int32]:
    """int32 [sequences, longest table]; entries past a sequence's table are 0."""
    lists = [chunk.request.block_table for chunk in ordered]
    tables = np.zeros((len(lists), max(map(len, lists))), dtype=np.int32)
    for row, blocks in zip(tables, lists, strict=True):
        row[: len(blocks)] = blocks
    return tables


def _logit_rows(
    ordered: Sequence[Chunk], starts: Sequence[int]
) -> tuple[list[int], tuple[LogitRows, ...]]:
    """The batch rows whose logits are wanted, ascending, and what each of them is for."""
    rows: list[int] = []
    wanted = []
    for chunk, first in zip(ordered, starts, strict=False):
        prompt = _prompt_rows(chunk, first)
        begin = len(rows)
        rows += prompt
        sampled = len(rows) if chunk.completes else None
        if sampled is not None:
            rows.append(first + chunk.num_tokens - 1)
        wanted.append(LogitRows(chunk, range(begin, begin + len(prompt)), sampled))
    return rows, tuple(wanted)


def _prompt_rows(chunk: Chunk, first: int) -> range:
    """Rows of the chunk that predict prompt tokens not yet scored; position p predicts p + 1."""
    request = chunk.request
    if request.params.prompt_logprobs is None:
        return range(0)
    begin = max(chunk.start, len(request.prompt_logprobs))
    end = min(chunk.start + chunk.num_tokens, len(request.prompt_token_ids) - 1)
    return range(first + begin - chunk.start, first + end - chunk.start)


def _mover(device: torch.device) -> Callable[[NDArray[np.generic]], torch.Tensor]:
    if device.type == "cpu":
        return torch.from_numpy
    return lambda array: torch.from_numpy(array).to(device, non_blocking=True)
