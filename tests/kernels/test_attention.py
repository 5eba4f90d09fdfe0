"""Paged attention and the KV write against torch's own attention, and their refusals."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.attention_cases import PagedCase
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def torch_attention(case: PagedCase, s: int, start: int, stop: int, window: int | None) -> Tensor:
    """Rows start..stop of sequence s, by scaled_dot_product_attention in float32."""
    group = case.heads // case.kv_heads
    q = case.q[s][start:stop].float().transpose(0, 1)
    k, v = (
        side[s][:stop].float().transpose(0, 1).repeat_interleave(group, 0)
        for side in (case.k, case.v)
    )
    key, position = torch.arange(stop), torch.arange(start, stop)[:, None]
    seen = key <= position
    if window is not None:
        seen &= key > position - window
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=case.scale)
    return out.transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 20, 65])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 24), (5, 1, 8)])
def test_attention_equals_torch_for_decode_chunk_and_prefill_rows(
    kernels: KernelBackend,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
) -> None:
    case = PagedCase([140, 1, 33, 64], heads, kv_heads, dim, dtype)
    spans = [(139, 140), (0, 1), (10, 33), (0, 64)]
    expected = torch.cat(
        [torch_attention(case, s, start, stop, window) for s, (start, stop) in enumerate(spans)]
    )
    found = case.attend(kernels, spans, window)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert float((found.float() - expected).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("block_size", [1, 8, 48, 256])
def test_attention_reads_blocks_of_any_size(kernels: KernelBackend, block_size: int) -> None:
    case = PagedCase([130, 5], 2, 1, 16, torch.float32, block_size=block_size)
    found = case.attend(kernels, [(120, 130), (4, 5)], None)
    expected = [torch_attention(case, 0, 120, 130, None), torch_attention(case, 1, 4, 5, None)]
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-6, rtol=0)


def test_attention_survives_scores_of_any_size(kernels: KernelBackend) -> None:
    case = PagedCase([100], 2, 2, 16, torch.float32)
    case.q[0] *= 300.0
    found = case.attend(kernels, [(90, 100)], None)
    torch.testing.assert_close(found, torch_attention(case, 0, 90, 100, None), atol=2e-3, rtol=1e-3)


def test_attention_reads_rows_of_a_fused_projection(kernels: KernelBackend) -> None:
    case = PagedCase([20], 4, 2, 16, torch.float32)
    fused = torch.randn(20, 8 * 16)
    fused[:, :64] = case.q[0].flatten(1)
    view = fused[:, :64].unflatten(1, (4, 16))
    batch = case.batch([(0, 20)])
    found = torch.empty(20, 64).unflatten(1, (4, 16))
    kernels.paged_attention(view, case.cache(kernels), batch, case.scale, None, found)
    assert torch.equal(found, case.attend(kernels, [(0, 20)], None))


def test_write_kv_fills_the_slots_of_its_rows_and_nothing_else(kernels: KernelBackend) -> None:
    case = PagedCase([37, 12], 4, 2, 16, torch.bfloat16)
    batch = case.batch([(30, 37), (0, 12)])
    fused = torch.randn(19, 2 * 2 * 16).bfloat16()
    k, v = (side.unflatten(1, (2, 16)) for side in fused.split(32, 1))
    cache = torch.zeros(2, 8, 2, 16, 16, dtype=torch.bfloat16)
    kernels.write_kv(k, v, cache, batch)
    values = cache[1].transpose(1, 2).flatten(0, 1)
    assert torch.equal(values[batch.slots], v)
    rest = torch.ones(len(values), dtype=torch.bool)
    rest[batch.slots] = False
    assert not values[rest].any()
    keys = cache[0].flatten()  # in an order of the backend's own
    assert torch.equal(keys[keys != 0].sort().values, k[k != 0].flatten().sort().values)


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query_start": torch.tensor([0, 9])}, "query_start"),
        ({"context": torch.tensor([9])}, "context"),
        ({"context": torch.tensor([900], dtype=torch.int32)}, "context"),
        ({"block_tables": torch.full((1, 2), 99, dtype=torch.int32)}, "block_tables"),
        ({"block_tables": torch.zeros(4, 1, dtype=torch.int32).T}, "block_tables"),
        ({"block_size": 8}, "cache"),
    ],
)
def test_attention_refuses_places_outside_the_cache_and_wrong_dtypes(
    cpu_backend: CpuBackend, change: dict[str, Tensor | int], named: str
) -> None:
    case = PagedCase([20], 2, 1, 16, torch.float32)
    batch = replace(case.batch([(11, 20)]), **change)
    q, cache = case.q[0][11:], case.cache(cpu_backend)
    with pytest.raises(BadArgument, match=named):
        cpu_backend.paged_attention(q, cache, batch, 1.0, None, torch.empty_like(q))


@pytest.mark.compiler
def test_attention_refuses_wrong_queries_and_windows(cpu_backend: CpuBackend) -> None:
    case = PagedCase([20], 2, 2, 16, torch.float32)
    batch, cache, q = case.batch([(0, 20)]), case.cache(cpu_backend), case.q[0]

    def attend(q: Tensor, window: int | None) -> None:
        cpu_backend.paged_attention(q, cache, batch, 1.0, window, torch.empty_like(q))

    with pytest.raises(BadArgument, match=r"q: expected torch\.float32"):
        attend(q.half(), window=None)
    with pytest.raises(BadArgument, match="q: expected shape"):
        attend(q[:, :, :8], window=None)
    with pytest.raises(BadArgument, match="q: expected unit stride"):
        attend(q.mT.contiguous().mT, window=None)
    with pytest.raises(BadArgument, match="KV heads"):
        attend(q[:, :1], window=None)
    with pytest.raises(BadArgument, match="window"):
        attend(q, window=0)


@pytest.mark.compiler
def test_write_kv_refuses_slots_outside_the_cache(cpu_backend: CpuBackend) -> None:
    case = PagedCase([20], 2, 1, 16, torch.float32)
    batch, cache = case.batch([(0, 20)]), case.cache(cpu_backend)
    for slot in (-1, cache.shape[1] * 16):
        bad = replace(batch, slots=torch.full((20,), slot))
        with pytest.raises(BadArgument, match="slots"):
            cpu_backend.write_kv(case.k[0], case.v[0], cache, bad)
    with pytest.raises(BadArgument, match="v: expected"):
        cpu_backend.write_kv(case.k[0], case.v[0][:19], cache, batch)
