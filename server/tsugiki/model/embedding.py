"""Token ids to hidden states and hidden states to logits, under each row's own variant.

Owns: replaced and added rows of the embedding and of lm_head, and each row's own vocabulary.
Does not know: layers, linears' deltas (those of lm_head arrive through its VariantLinear).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.codecs.base import EmbeddingDelta, ResidentVariant
from tsugiki.model.batch import Segment
from tsugiki_kernels.interface import KernelBackend

VariantSegments = Sequence[tuple[Segment, ResidentVariant]]


def embed(
    token_ids: Tensor, weight: Tensor, segments: VariantSegments, kernels: KernelBackend
) -> Tensor:
    """Hidden states [rows, hidden] of token ids (int64 [rows]); weight: [vocab, hidden], packed."""
    hidden = weight.new_empty(len(token_ids), weight.shape[1])
    changed = [(s, v.embedding) for s, v in segments if v.embedding is not None]
    # added tokens lie beyond the base's rows; their own rows replace what is read here
    known = token_ids.clamp(max=weight.shape[0] - 1) if changed else token_ids
    kernels.lookup(weight, known, hidden)
    for segment, delta in changed:
        rows = slice(segment.start, segment.stop)
        hidden[rows] = _changed_rows(hidden[rows], token_ids[rows], weight.shape[0], delta)
    return hidden


def _changed_rows(hidden: Tensor, ids: Tensor, vocab: int, delta: EmbeddingDelta) -> Tensor:
    if delta.delta is not None and delta.codec is not None:
        change = delta.codec.lookup(delta.delta, ids.clamp(max=vocab - 1))
        hidden = (hidden.float() + change).to(hidden.dtype)
    if len(delta.row_ids):
        place = torch.searchsorted(delta.row_ids, ids).clamp(max=len(delta.row_ids) - 1)
        replaced = delta.row_ids[place] == ids
        hidden = torch.where(replaced[:, None], delta.rows[place], hidden)
    return hidden


def finish_logits(
    logits: Tensor, hidden: Tensor, segments: Sequence[Segment], base_vocab: int
) -> Tensor:
    """Give every row its own vocabulary.

    logits: float32 [n, base vocab], deltas of lm_head applied; hidden: [n, hidden]. Returns
    float32 [n, largest vocabulary of the rows]; a row's logits beyond its own vocabulary are -inf.
    """
    variants = [(s, s.variant) for s in segments if s.variant is not None]
    sizes = [base_vocab if s.variant is None else s.variant.vocab_size for s in segments]
    width = max(sizes, default=base_vocab)
    if width > base_vocab:
        logits = F.pad(logits, (0, width - base_vocab), value=float("-inf"))
    for segment, variant in variants:
        if variant.lm_head_rows is not None:
            rows = slice(segment.start, segment.stop)
            ids = output_row_ids(variant, variant.lm_head_rows, base_vocab)
            logits[rows, ids] = F.linear(hidden[rows], variant.lm_head_rows).float()
    for segment, size in zip(segments, sizes, strict=True):
        if size < width:
            logits[segment.start : segment.stop, size:] = float("-inf")
    return logits[:, :width]


def output_row_ids(variant: ResidentVariant, rows: Tensor, base_vocab: int) -> Tensor | slice:
    """Which logits the variant's own output rows give."""
    if variant.lm_head_row_ids is not None:
        return variant.lm_head_row_ids
    return slice(base_vocab, base_vocab + len(rows))
