"""Paged attention and the KV write: the GPU's kernels."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.kernels.attention_cases import PagedCase
from tsugiki_kernels.cuda import attention
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.reference import ReferenceBackend

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
REFERENCE = ReferenceBackend()
DTYPES = pytest.mark.parametrize(
    "dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@dataclass
class Paged(ReferenceBackend):
    """The operations under test, where a case expects a backend."""

    launcher: Launcher

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        there = cache.to(self.launcher.device)
        k, v = (tensor.to(self.launcher.device) for tensor in (k, v))
        attention.write_kv(self.launcher, k, v, there, self._moved(where))
        cache.copy_(there)

    def paged_attention(
        self,
        q: Tensor,
        cache: Tensor,
        where: AttentionBatch,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        place = self.launcher.device
        there, moved = out.to(place), self._moved(where)
        attention.paged_attention(
            Execution(self.launcher), q.to(place), cache.to(place), moved, scale, window, there
        )
        out.copy_(there)

    def _moved(self, where: AttentionBatch) -> AttentionBatch:
        place = self.launcher.device
        return replace(
            where,
            query_start=where.query_start.to(place),
            context=where.context.to(place),
            block_tables=where.block_tables.to(place),
            slots=where.slots.to(place),
        )


@pytest.fixture
def paged(launcher: Launcher) -> Paged:
    return Paged(launcher)


@pytest.mark.parametrize("window", [None, 1, 20, 65])
@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 24), (20, 1, 8)])
def test_attention_equals_the_formula_for_decode_chunk_and_prefill_rows(
    paged: Paged, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, window: int | None
) -> None:
    case = PagedCase([140, 1, 33, 64], heads, kv_heads, dim, dtype)
    spans = [(139, 140), (0, 1), (10, 33), (40, 64)]
    found = case.attend(paged, spans, window)
    expected = case.attend(REFERENCE, spans, window)
    assert float((found.float() - expected.float()).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("dim", "dtype"), [(128, torch.bfloat16), (200, torch.float16), (72, torch.float32)]
)
def test_contexts_of_several_splits_and_heads_of_several_parts_are_merged(
    paged: Paged, dim: int, dtype: torch.dtype
) -> None:
    case = PagedCase([530], 2, 1, dim, dtype)
    for span in ((529, 530), (525, 530)):
        found = case.attend(paged, [span], None)
        expected = case.attend(REFERENCE, [span], None)
        assert float((found.float() - expected.float()).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("window", [None, 30])
@DTYPES
def test_the_bits_of_a_row_depend_on_its_own_context_only(
    paged: Paged, dtype: torch.dtype, window: int | None
) -> None:
    case = PagedCase([530, 40], 6, 2, 8, dtype)
    chunk = case.attend(paged, [(521, 530), (3, 40)], window)
    for row in (0, 4, 8):
        alone = case.attend(paged, [(521 + row, 522 + row), (39, 40)], window)
        assert torch.equal(alone, chunk[[row, -1]])


@pytest.mark.parametrize("block_size", [8, 48, 256])
def test_attention_reads_blocks_of_several_sizes(paged: Paged, block_size: int) -> None:
    case = PagedCase([130, 5], 2, 1, 16, torch.float32, block_size=block_size)
    spans = [(120, 130), (4, 5)]
    found, expected = case.attend(paged, spans, None), case.attend(REFERENCE, spans, None)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_attention_survives_scores_of_any_size(paged: Paged) -> None:
    case = PagedCase([100], 2, 2, 16, torch.float32)
    case.q[0] *= 300.0
    found, expected = (case.attend(own, [(90, 100)], None) for own in (paged, REFERENCE))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_more_sequences_than_lanes_find_their_rows(paged: Paged) -> None:
    contexts = [1 + 7 * i % 23 for i in range(40)]
    case = PagedCase(contexts, 2, 1, 8, torch.float32)
    spans = [(n - 1 - (i % 3 == 0 and n > 1), n) for i, n in enumerate(contexts)]
    found, expected = case.attend(paged, spans, None), case.attend(REFERENCE, spans, None)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_refusals_name_the_tensor(paged: Paged) -> None:
    with pytest.raises(BadArgument, match="expected blocks of a multiple of 8 positions"):
        PagedCase([4], 2, 1, 16, torch.float32, block_size=4).cache(paged)
    with pytest.raises(BadArgument, match="found 16 and 12"):
        PagedCase([4], 2, 1, 12, torch.float32).cache(paged)
    case = PagedCase([20], 3, 1, 16, torch.float32)
    cache, batch = case.cache(paged), case.batch([(0, 20)])
    q, out = case.q[0], torch.empty_like(case.q[0])
    wide = torch.zeros(20, 3 * 16 + 1, device=paged.launcher.device)[:, 1:].unflatten(1, (3, 16))
    with pytest.raises(BadArgument, match="q: expected heads that begin at multiples of 16"):
        paged.paged_attention(wide, cache, batch, 1.0, None, out)
    with pytest.raises(BadArgument, match="window: expected at least 1"):
        paged.paged_attention(q, cache, batch, 1.0, 0, out)
