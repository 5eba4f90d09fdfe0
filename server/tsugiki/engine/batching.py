"""Chunks of requests -> one `Batch` for the decoder.

Owns: the order of rows and the index tensors of a step, and which of its logits are wanted. Does
not know queues, sampling or what a variant does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from tsugiki.codecs.base import ResidentVariant
from tsugiki.engine.schedule import Chunk
from tsugiki.model.batch import Batch, Segment
from tsugiki_kernels.operands import AttentionBatch

Variants = Mapping[str, ResidentVariant]


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Which rows of the logits belong to a chunk: those of its prompt, those to sample from."""

    chunk: Chunk
    prompt: range  # rows whose next token is a prompt token that wants log-probabilities
    sampled: range  # empty: the chunk does not complete its request's tokens; 1 + drafted tokens


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch, and where its logits go. `logit_rows` has one entry per chunk, in batch order."""

    batch: Batch
    logit_rows: tuple[LogitRows, ...]


def build(
    chunks: Sequence[Chunk], variants: Variants, block_size: int, device: torch.device
) -> BatchPlan:
    """Lay the chunks out as rows: the base first, then by codec and variant, decode rows first.

    Work per chunk stays with Python's own lists, and numpy is called a fixed number of times.

    Raises:
        KeyError: a chunk whose variant is not among `variants`.
    """
    ordered = sorted(chunks, key=_row_order(variants))
    starts = [0, *accumulate(chunk.num_rows for chunk in ordered)]
    counts = np.diff(starts)
    computed = np.array([chunk.start for chunk in ordered])
    sequences = np.repeat(np.arange(len(ordered)), counts)
    positions = np.arange(starts[-1]) + (computed - starts[:-1])[sequences]
    tables = _block_tables(ordered)
    blocks = tables[sequences, positions // block_size].astype(np.int64)
    rows, logit_rows = _logit_rows(ordered, starts)
    to_device = _mover(device)
    batch = Batch(
        token_ids=to_device(np.array(_token_ids(ordered), dtype=np.int64)),
        positions=to_device(positions),
        segments=_segments(ordered, starts, variants),
        attention=AttentionBatch(
            query_start=to_device(np.array(starts, dtype=np.int32)),
            context=to_device((computed + counts).astype(np.int32)),
            block_tables=to_device(tables),
            slots=to_device(blocks * block_size + positions % block_size),
            block_size=block_size,
        ),
        logit_rows=torch.from_numpy(np.array(rows, dtype=np.int64)),
    )
    return BatchPlan(batch, logit_rows)


def _row_order(variants: Variants) -> Callable[[Chunk], tuple[str, str, int]]:
    codecs = {digest: _codec_name(variant) for digest, variant in variants.items()}

    def key(chunk: Chunk) -> tuple[str, str, int]:
        digest = chunk.request.variant.digest
        if digest is None:
            return ("", "", chunk.num_tokens)
        return (codecs[digest], digest, chunk.num_tokens)

    return key


def _codec_name(variant: ResidentVariant) -> str:
    """Neighbours of one codec can share a kernel call; a variant without linears goes anywhere."""
    linear = next(iter(variant.linears.values()), None)
    return "" if linear is None else linear.codec.name


def _token_ids(ordered: Sequence[Chunk]) -> list[int]:
    token_ids: list[int] = []
    for chunk in ordered:
        token_ids += chunk.request.tokens(chunk.start, chunk.start + chunk.num_tokens)
        token_ids += chunk.draft
    return token_ids


def _segments(
    ordered: Sequence[Chunk], starts: Sequence[int], variants: Variants
) -> tuple[Segment, ...]:
    """One segment for the base, one for all decode rows of a variant, one per longer chunk.

    Longer chunks stay apart so that fused or rebuilt follows from the request's own chunk alone; a
    draft does not make a chunk longer, so that its rows are computed as they are without one.
    """
    segments: list[Segment] = []
    for (digest, _), chunks in groupby(enumerate(ordered), _shared_segment):
        members = list(chunks)
        first, last = members[0][0], members[-1][0]
        tokens = max(chunk.num_tokens for _, chunk in members)
        variant = None if digest is None else variants[digest]
        segments.append(Segment(variant, starts[first], starts[last + 1], tokens))
    return tuple(segments)


def _shared_segment(numbered: tuple[int, Chunk]) -> tuple[str | None, int | None]:
    """Neighbouring chunks with the same key are one segment."""
    number, chunk = numbered
    digest = chunk.request.variant.digest
    return digest, None if digest is None or chunk.num_tokens == 1 else number


def _block_tables(ordered: Sequence[Chunk]) -> NDArray[np.int32]:
    """int32 [sequences, longest table]; entries past a sequence's table are 0."""
    lists = [chunk.request.block_table for chunk in ordered]
    columns = zip_longest(*lists, fillvalue=0)
    return np.ascontiguousarray(np.array(list(columns), dtype=np.int32).T)


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
        middle = len(rows)
        if chunk.completes:
            rows += range(first + chunk.num_tokens - 1, first + chunk.num_rows)
        wanted.append(LogitRows(chunk, range(begin, middle), range(middle, len(rows))))
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
