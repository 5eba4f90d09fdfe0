"""Greedy answers of a base and of a variant on it, by the decoder that serves them, in float32.

Owns: one sequence, its KV cache, and how sure each token is. Does not know: prompts, what an answer
is used for.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tsugiki.codecs import artifact
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import KVCache, allocate_kv_cache
from tsugiki.model.loader import BaseModel, load_base
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.select import backend

BLOCK_SIZE = 16
MARGIN = 0.5  # of the largest logit over the second: what 16-bit arithmetic does not turn around


class GreedyDecoder:
    """A base with at most one variant, one sequence at a time."""

    def __init__(self, base: BaseModel) -> None:
        """`base` in float32 on the CPU."""
        self._base = base
        kernels = base.decoder.kernels
        self._place = Destination(
            base.layout,
            base.vector,
            base.dtype,
            kernels,
            MaskCache(),
            index_of=base.index_of,
            factors_of=base.factors_of,
        )

    @classmethod
    def open(cls, base: Path, cache_dir: Path | None) -> "GreedyDecoder":
        """Load a base directory whole.

        Raises:
            UnsupportedModel: see load_base.
        """
        kernels = backend("auto", "cpu", None if cache_dir is None else cache_dir / "kernels")
        return cls(load_base(base, "cpu", torch.float32, kernels, cache_dir))

    def stage(self, file: Path) -> ResidentVariant:
        """A variant file in the form that is served.

        Raises:
            InvalidArtifact: the file does not fit the base.
        """
        return stage_variant(artifact.read(file), self._place)

    def answer(
        self, variant: ResidentVariant, prompt: Sequence[int], tokens: int, ends: Collection[int]
    ) -> list[int]:
        """Up to `tokens` ids, up to one of `ends`, and up to the first that MARGIN leaves open."""
        cache = self._cache(len(prompt) + tokens)
        found: list[int] = []
        chunk, start = list(prompt), 0
        while len(found) < tokens:
            logits = self._forward(variant, chunk, start, cache, rows=1)[0]
            best, second = logits.topk(2).values.tolist()
            if best - second < MARGIN:
                break
            found.append(int(logits.argmax()))
            if found[-1] in ends:
                break
            start, chunk = start + len(chunk), found[-1:]
        return found

    def base_differs(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether the plain base would leave this answer, by at least MARGIN at some token."""
        ids = [*prompt, *answer]
        if max(ids) >= self._base.architecture.vocab_size:
            return True  # a token that only the variant has
        logits = self._forward(None, ids[:-1], 0, self._cache(len(ids)), rows=len(answer))
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        return bool((logits.amax(dim=1) - chosen >= MARGIN).any())

    def _cache(self, tokens: int) -> KVCache:
        blocks = -(-tokens // BLOCK_SIZE)
        return allocate_kv_cache(self._base.architecture, blocks, BLOCK_SIZE, torch.float32)

    def _forward(
        self,
        variant: ResidentVariant | None,
        ids: Sequence[int],
        start: int,
        cache: KVCache,
        *,
        rows: int,
    ) -> Tensor:
        """Logits float32 [rows, vocab] of the last `rows` of `ids`, which begin at `start`."""
        count = len(ids)
        positions = torch.arange(start, start + count)
        batch = Batch(
            token_ids=torch.tensor(ids),
            positions=positions,
            segments=(Segment(variant, 0, count, count),),
            attention=AttentionBatch(
                query_start=torch.tensor([0, count], dtype=torch.int32),
                context=torch.tensor([start + count], dtype=torch.int32),
                block_tables=torch.arange(cache.num_blocks, dtype=torch.int32)[None],
                slots=positions,
                block_size=BLOCK_SIZE,
            ),
            logit_rows=torch.arange(count - rows, count),
        )
        return self._base.decoder.forward(batch, cache)
