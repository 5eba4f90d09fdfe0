"""The solo law at the kernels: a row's bits do not depend on who else is in the step."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.attention_cases import PagedCase
from tests.kernels.deltas import KINDS, cast, close, expected64, sparse
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import Placed

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_bit_equal_alone_in_chunks_and_beside_other_variants(
    cpu_backend: CpuBackend, kind: str, dtype: torch.dtype
) -> None:
    rows, shape = 29, (200, 147)
    one, other = (
        cpu_backend.stage([Placed(0, cast(KINDS[kind](shape, seed), dtype))]) for seed in (1, 2)
    )
    x, base = torch.randn(rows, shape[1]).to(dtype), torch.randn(rows, shape[0]).to(dtype)
    together = base.clone()
    cpu_backend.apply(x, together, [one], [(0, rows)])
    alone, mixed = base.clone(), base.clone()
    for i in range(rows):
        cpu_backend.apply(x, alone, [one], [(i, i + 1)])
    for start, stop in ((0, 2), (2, 5), (5, 11), (11, 27)):
        spans = [(start, stop), (stop, stop + 2)]
        scratch = mixed.clone()
        cpu_backend.apply(x, scratch, [one, other], spans)
        mixed[start:stop] = scratch[start:stop]
    assert torch.equal(together, alone)
    assert torch.equal(together[:27], mixed[:27])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kept", [1, 2, 3, 4, 36])
def test_any_number_of_kept_columns_gives_the_same_bits_for_any_number_of_tokens(
    cpu_backend: CpuBackend, kept: int, bits: int
) -> None:
    parts = [Placed(0, sparse((72, 50), bits, bits=bits, kept=kept))]
    staged = cpu_backend.stage(parts)
    x, base = torch.randn(15, 50).bfloat16(), torch.randn(15, 72).bfloat16()
    together, apart = base.clone(), base.clone()
    cpu_backend.apply(x, together, [staged], [(0, 15)])
    for span in ((0, 1), (1, 3), (3, 6), (6, 11), (11, 15)):
        cpu_backend.apply(x, apart, [staged], [span])
    assert torch.equal(together, apart)
    assert close(together, expected64(x, base, [parts], [(0, 15)]), 4e-3)


@pytest.mark.parametrize("each", [0, 1, 2, 3])
@pytest.mark.parametrize("kept", [1, 7, 12])
@pytest.mark.parametrize(("bits", "rows_per_step"), [(1, 16), (2, 64), (4, 1)])
def test_variants_of_one_mask_give_the_bits_that_each_gives_alone(
    cpu_backend: CpuBackend, bits: int, rows_per_step: int, kept: int, each: int
) -> None:
    count, shape = 17, (200, 50)
    made = [
        sparse(shape, seed, bits=bits, kept=kept, rows_per_step=rows_per_step, bias=4)
        for seed in range(count)
    ]
    alike = [replace(delta, columns=made[0].columns) for delta in made]
    alike[6] = made[6]  # one of another mask, and a row of the base, come in between
    spans = [(i * each + (i > 11), (i + 1) * each + (i > 11)) for i in range(count)]
    parts = [[Placed(0, delta), Placed(208, delta)] for delta in alike]
    staged = [cpu_backend.stage(placed) for placed in parts]
    x = torch.randn(count * each + 1, shape[1]).bfloat16()
    base = torch.randn(len(x), 416).bfloat16()
    together, alone = base.clone(), base.clone()
    cpu_backend.apply(x, together, staged, spans)
    for variant, span in zip(staged, spans, strict=True):
        cpu_backend.apply(x, alone, [variant], [span])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("window", [None, 1, 70, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 24), (7, 1, 16)])
def test_attention_is_bit_equal_in_one_chunk_in_many_and_token_by_token(
    cpu_backend: CpuBackend,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
) -> None:
    tokens = 150
    case = PagedCase(contexts=[tokens], heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)
    whole = case.attend(cpu_backend, [(0, tokens)], window)
    chunks = [(0, 1), (1, 18), (18, 64), (64, 65), (65, 130), (130, 150)]
    assert torch.equal(whole, torch.cat([case.attend(cpu_backend, [c], window) for c in chunks]))
    single = [case.attend(cpu_backend, [(i, i + 1)], window) for i in range(tokens)]
    assert torch.equal(whole, torch.cat(single))


def test_attention_is_bit_equal_beside_other_sequences_and_in_other_blocks(
    cpu_backend: CpuBackend,
) -> None:
    case = PagedCase(contexts=[90, 33, 7], heads=6, kv_heads=2, dim=32, dtype=torch.bfloat16)
    mixed = case.attend(cpu_backend, [(60, 90), (32, 33), (0, 7)], None)
    alone = PagedCase(contexts=[90], heads=6, kv_heads=2, dim=32, dtype=torch.bfloat16, like=case)
    assert torch.equal(mixed[:30], alone.attend(cpu_backend, [(60, 90)], None))
