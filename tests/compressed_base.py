"""What tests of compressed bases share: dense copies of them, and logits of mixed rows."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki.compress.checkpoint_writer import write_text_side, write_weights
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import BaseModel
from tsugiki.model.stored_form import dense_config
from tsugiki_kernels.operands import AttentionBatch

TOKENS = 16


def logits(base: BaseModel, variants: Sequence[ResidentVariant | None]) -> Tensor:
    """float32 [variants, 16, vocab]: one sequence of ids 3 .. 18 for each of them."""
    count = len(variants)
    rows = torch.arange(count * TOKENS)
    starts = range(0, count * TOKENS, TOKENS)
    where = AttentionBatch(
        query_start=torch.tensor([*starts, count * TOKENS], dtype=torch.int32),
        context=torch.full((count,), TOKENS, dtype=torch.int32),
        block_tables=torch.arange(count, dtype=torch.int32)[:, None],
        slots=rows,
        block_size=TOKENS,
    )
    segments = tuple(
        Segment(variant, start, start + TOKENS, TOKENS)
        for variant, start in zip(variants, starts, strict=True)
    )
    batch = Batch(rows % TOKENS + 3, rows % TOKENS, segments, where, rows)
    cache = allocate_kv_cache(base.architecture, count, TOKENS, base.dtype)
    return base.decoder.forward(batch, cache).clone().view(count, TOKENS, -1)


def written_dense(base: Path, out: Path, noise: float) -> Path:
    """The base as an ordinary float32 checkpoint, its linears and norms moved by `noise`."""
    checkpoint = open_checkpoint(base)
    generator = torch.Generator().manual_seed(5)

    def moved(name: str) -> torch.Tensor:
        tensor = checkpoint.tensor(name).float()
        if "embed" in name:
            return tensor
        return tensor + noise * torch.randn(tensor.shape, generator=generator)

    tensors = ((name, moved(name)) for name in checkpoint.names())
    write_weights(out, dense_config(checkpoint.config), tensors, torch.float32)
    write_text_side(out, base, None)
    return out
