"""What one forward needs: tokens, places in the cache, and which rows belong to which variant."""

from dataclasses import dataclass

from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki_kernels.operands import AttentionBatch


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one variant (or of the plain base) that are computed the same way."""

    variant: ResidentVariant | None  # None: the base
    start: int
    stop: int
    chunk_tokens: int  # rows of the request chunk; decides fused or reconstructed, never the load


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. Rows are sorted: base first, then by codec and variant; segments cover all rows."""

    token_ids: Tensor  # int64 [rows]
    positions: Tensor  # int64 [rows]
    segments: tuple[Segment, ...]
    attention: AttentionBatch
    logit_rows: Tensor  # int64 [n], rows whose logits are wanted, ascending; always on the CPU
