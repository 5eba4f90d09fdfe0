"""Sequences written into a paged cache through write_kv, in shuffled blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsugiki_kernels.interface import KernelBackend, Span
from tsugiki_kernels.operands import AttentionBatch


@dataclass
class PagedCase:
    """Random q, k, v of some sequences; `like` takes those of another case's first ones."""

    contexts: list[int]
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    block_size: int = 16
    like: "PagedCase | None" = None
    q: list[Tensor] = field(init=False)
    k: list[Tensor] = field(init=False)
    v: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        source = self.like
        g = torch.Generator().manual_seed(5)

        def rows(heads: int) -> list[Tensor]:
            size = (heads, self.dim)
            return [torch.randn(n, *size, generator=g).to(self.dtype) for n in self.contexts]

        self.q = rows(self.heads) if source is None else source.q
        self.k = rows(self.kv_heads) if source is None else source.k
        self.v = rows(self.kv_heads) if source is None else source.v

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    def batch(self, spans: Sequence[Span]) -> AttentionBatch:
        """Rows `spans[s]` of each sequence, whose cache ends at the span's end."""
        size = self.block_size
        needed = [-(-n // size) for n in self.contexts]
        order = torch.randperm(
            sum(needed) + 2, generator=torch.Generator().manual_seed(len(needed))
        )
        tables = torch.zeros(len(spans), max(needed), dtype=torch.int32)
        slots, lengths, used = [], [], 0
        for s, (start, stop) in enumerate(spans):
            tables[s, : needed[s]] = order[used : used + needed[s]]
            used += needed[s]
            positions = torch.arange(start, stop)
            slots.append(tables[s, positions // size].long() * size + positions % size)
            lengths.append(stop - start)
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        context = torch.tensor([stop for _, stop in spans], dtype=torch.int32)
        return AttentionBatch(starts, context, tables, torch.cat(slots), size)

    def cache(self, kernels: KernelBackend) -> Tensor:
        """Full of NaN, so that a read of an unwritten place shows; all contexts written."""
        blocks = sum(-(-n // self.block_size) for n in self.contexts) + 2
        shape = (2, blocks, self.kv_heads, self.block_size, self.dim)
        cache = torch.full(shape, float("nan")).to(self.dtype)
        whole = self.batch([(0, n) for n in self.contexts])
        n = len(self.contexts)
        kernels.write_kv(torch.cat(self.k[:n]), torch.cat(self.v[:n]), cache, whole)
        return cache

    def attend(self, kernels: KernelBackend, spans: Sequence[Span], window: int | None) -> Tensor:
        """Attention of the named rows over a cache in which everything is written."""
        q = torch.cat([self.q[s][start:stop] for s, (start, stop) in enumerate(spans)])
        out = torch.full_like(q, float("nan"))
        kernels.paged_attention(q, self.cache(kernels), self.batch(spans), self.scale, window, out)
        return out
