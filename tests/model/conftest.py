"""Running a decoder the way the engine does: chunked, batched, in shuffled KV blocks."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import KVCache, allocate_kv_cache
from tsugiki.model.loader import BaseModel
from tsugiki_kernels.operands import AttentionBatch

BLOCK_SIZE = 4
Variants = Sequence[ResidentVariant | None]
RunSequences = Callable[..., list[Tensor]]


class Sequencer:
    """Feeds sequences chunk by chunk, all of a step in one batch, rows sorted by variant."""

    def __init__(self, base: BaseModel, sequences: Sequence[Tensor], variants: Variants) -> None:
        self.base, self.sequences, self.variants = base, sequences, variants
        self.done = [0] * len(sequences)
        self.logits: list[list[Tensor]] = [[] for _ in sequences]
        needed = [-(-len(ids) // BLOCK_SIZE) for ids in sequences]
        blocks = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(11))
        self.tables = torch.zeros(len(sequences), max(needed), dtype=torch.int32)
        for table, ids in zip(self.tables, torch.split(blocks[: sum(needed)], needed), strict=True):
            table[: len(ids)] = ids
        self.cache: KVCache = allocate_kv_cache(
            base.architecture, len(blocks), BLOCK_SIZE, base.dtype
        )

    def step(self, chunks: Sequence[int]) -> None:
        """One batch with the next chunk of every unfinished sequence."""
        ranks = sorted({id(v) for v in self.variants if v is not None})
        order = sorted(
            (i for i, ids in enumerate(self.sequences) if self.done[i] < len(ids)),
            key=lambda i: -1 if self.variants[i] is None else ranks.index(id(self.variants[i])),
        )
        spans = [
            (i, self.done[i], min(self.done[i] + chunks[i], len(self.sequences[i]))) for i in order
        ]
        logits = self.base.decoder.forward(self._batch(spans), self.cache)
        at = 0
        for i, start, stop in spans:
            self.logits[i].append(logits[at : at + stop - start].clone())
            at, self.done[i] = at + stop - start, stop

    def _batch(self, spans: Sequence[tuple[int, int, int]]) -> Batch:
        lengths = [stop - start for _, start, stop in spans]
        starts = torch.tensor([0, *lengths]).cumsum(0)
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in spans])
        tables = self.tables[[i for i, _, _ in spans]]
        row_sequence = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor(lengths))
        block = tables[row_sequence, positions // BLOCK_SIZE].long()
        return Batch(
            token_ids=torch.cat([self.sequences[i][start:stop] for i, start, stop in spans]),
            positions=positions,
            segments=tuple(
                Segment(self.variants[i], int(a), int(b), int(b - a))
                for (i, _, _), a, b in zip(spans, starts[:-1], starts[1:], strict=True)
            ),
            attention=AttentionBatch(
                query_start=starts.int(),
                context=torch.tensor([stop for _, _, stop in spans], dtype=torch.int32),
                block_tables=tables,
                slots=block * BLOCK_SIZE + positions % BLOCK_SIZE,
                block_size=BLOCK_SIZE,
            ),
            logit_rows=torch.arange(len(positions)),
        )


def joined(steps: Sequence[Tensor]) -> Tensor:
    """Logits of successive steps below each other; a step is as wide as its largest vocabulary."""
    width = max(rows.shape[1] for rows in steps)
    return torch.cat([F.pad(r, (0, width - r.shape[1]), value=float("-inf")) for r in steps])


@pytest.fixture(scope="session")
def run_sequences() -> RunSequences:
    """`run(base, sequences, chunk, variants=None)` -> float32 logits [tokens, vocab] of each."""

    def run(
        base: BaseModel,
        sequences: Sequence[Tensor],
        chunk: Sequence[int],
        variants: Variants | None = None,
    ) -> list[Tensor]:
        sequencer = Sequencer(base, sequences, variants or [None] * len(sequences))
        while any(n < len(ids) for n, ids in zip(sequencer.done, sequences, strict=True)):
            sequencer.step(chunk)
        return [joined(steps) for steps in sequencer.logits]

    return run
