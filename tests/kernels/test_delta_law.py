"""The weight law at the kernels: what apply and reconstruct write equals the dense formula."""

import pytest
import torch

from tests.kernels.deltas import (
    KINDS,
    bias64,
    cast,
    close,
    dense,
    dense64,
    expected64,
    low_rank,
    random_bias,
    sign,
    sparse,
)
from tests.kernels.weights import packed_for, unpacked
from tsugiki_kernels.deltas import DenseDelta, Placed
from tsugiki_kernels.interface import KernelBackend, Span

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # one rounding, relative
LAYOUTS: dict[str, list[Span]] = {
    "one row": [(0, 1)],
    "an empty span between": [(0, 2), (2, 2), (2, 3)],
    "gaps of base rows": [(1, 4), (6, 7), (9, 14)],
    "many rows of one": [(0, 21)],
    "one row each": [(i, i + 1) for i in range(9)],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
def test_apply_adds_the_dense_product_and_bias_to_its_rows_only(
    kernels: KernelBackend, kind: str, dtype: torch.dtype
) -> None:
    spans = LAYOUTS["gaps of base rows"]
    shapes = [(40, 50), (17, 50)]  # ragged last tiles, inputs not a multiple of 16
    variants = [
        [
            Placed(3, cast(KINDS[kind](shapes[0], 7 * v), dtype)),
            Placed(43, cast(KINDS[kind](shapes[1], 7 * v + 1), dtype)),
        ]
        for v in range(len(spans))
    ]
    x, out = torch.randn(16, 50).to(dtype), torch.randn(16, 64).to(dtype)
    expected = expected64(x, out, variants, spans)
    before = out.clone()
    kernels.apply(x, out, [kernels.stage(parts) for parts in variants], spans)
    assert close(out, expected, DTYPES[dtype])
    untouched = [0, 4, 5, 7, 8, 14, 15]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 60:], before[:, 60:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_output_of_16_bit_rows_is_not_rounded_to_their_dtype(
    kernels: KernelBackend, kind: str
) -> None:
    delta = cast(KINDS[kind]((40, 50), 3), torch.bfloat16)
    x, out = torch.randn(9, 50).bfloat16(), torch.randn(9, 40)
    wide = out.clone()
    kernels.apply(x, out, [kernels.stage([Placed(0, delta)])], [(0, 9)])
    kernels.apply(x.float(), wide, [kernels.stage([Placed(0, delta)])], [(0, 9)])
    torch.testing.assert_close(out, wide, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["sparse tiles 1 bit", "sparse rows 4 bits", "low rank", "sign"])
def test_apply_equals_the_formula_for_every_span_layout(
    kernels: KernelBackend, kind: str, layout: str
) -> None:
    spans = LAYOUTS[layout]
    variants = [[Placed(0, KINDS[kind]((100, 96), v))] for v in range(len(spans))]
    x, out = torch.randn(24, 96), torch.zeros(24, 100)
    expected = expected64(x, out, variants, spans)
    kernels.apply(x, out, [kernels.stage(parts) for parts in variants], spans)
    assert close(out, expected, DTYPES[torch.float32])


def test_apply_reads_and_writes_column_slices_of_wider_tensors(kernels: KernelBackend) -> None:
    parts = [Placed(0, sparse((32, 48), 1))]
    wide_x, wide_out = torch.randn(5, 100), torch.zeros(5, 80)
    expected = expected64(wide_x[:, 7:55], wide_out[:, 11:43], [parts], [(0, 5)])
    kernels.apply(wide_x[:, 7:55], wide_out[:, 11:43], [kernels.stage(parts)], [(0, 5)])
    assert close(wide_out[:, 11:43], expected, 2e-6)
    assert not wide_out[:, :11].any()
    assert not wide_out[:, 43:].any()


def test_apply_with_no_variants_leaves_out_as_it_is(kernels: KernelBackend) -> None:
    out = torch.randn(3, 4)
    before = out.clone()
    kernels.apply(torch.randn(3, 5), out, [], [])
    assert torch.equal(out, before)


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["sparse tiles 1 bit", "sparse rows 4 bits", "low rank", "sign"])
def test_work_large_enough_for_several_threads_gives_the_same(
    cpu_backend: KernelBackend, kind: str
) -> None:
    rows = 40
    delta = {
        "sparse tiles 1 bit": sparse((600, 512), 0, bits=1, kept=32),
        "sparse rows 4 bits": sparse((600, 512), 0, rows_per_mask=1, kept=32),
        "low rank": low_rank((600, 512), 0, rank=64),
        "sign": sign((600, 512), 0),
    }[kind]
    parts = [Placed(0, delta)]
    x, out = torch.randn(rows, 512), torch.zeros(rows, 600)
    expected = expected64(x, out, [parts, parts], [(0, 30), (33, 40)])
    staged = cpu_backend.stage(parts)
    cpu_backend.apply(x, out, [staged, staged], [(0, 30), (33, 40)])
    assert close(out, expected, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("kind", KINDS)
def test_reconstruct_gives_base_plus_delta_rounded_once(
    kernels: KernelBackend, kind: str, dtype: torch.dtype
) -> None:
    parts = [
        Placed(2, cast(KINDS[kind]((40, 50), 1), dtype)),
        Placed(45, cast(KINDS[kind]((17, 50), 2), dtype)),
    ]
    base, out = torch.randn(64, 50).to(dtype), torch.empty(64, 50, dtype=dtype)
    expected = base.double()
    for placed in parts:
        rows = slice(placed.offset, placed.offset + placed.delta.shape[0])
        expected[rows] += dense64(placed.delta)
    kernels.reconstruct(packed_for(kernels, base), kernels.stage(parts), out)
    out = unpacked(kernels, out)
    assert close(out, expected, DTYPES[dtype])
    assert torch.equal(out[42:45], base[42:45])


def test_bias_is_the_sum_of_the_parts_or_none(kernels: KernelBackend) -> None:
    first, second = dense((4, 8), 1), dense((3, 8), 2, weight=False)
    whole = kernels.bias(kernels.stage([Placed(1, first), Placed(6, second)]), 10)
    assert whole is not None
    assert isinstance(first.bias, torch.Tensor)
    assert isinstance(second.bias, torch.Tensor)
    zeros = torch.zeros
    assert torch.equal(whole, torch.cat([zeros(1), first.bias, zeros(1), second.bias, zeros(1)]))
    assert kernels.bias(kernels.stage([Placed(0, sign((4, 8), 0))]), 4) is None


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("rows", [1, 7, 16, 37, 400])
def test_a_coded_bias_is_its_scale_times_its_codes_to_the_bit(
    kernels: KernelBackend, bits: int, rows: int
) -> None:
    bias = random_bias(rows, bits, torch.Generator().manual_seed(bits))
    staged = kernels.stage([Placed(2, DenseDelta((rows, 8), None, bias))])
    found, out = kernels.bias(staged, rows + 5), torch.zeros(3, rows + 5)
    kernels.apply(torch.randn(3, 8), out, [staged], [(0, 3)])
    expected = torch.zeros(rows + 5, dtype=torch.float64)
    expected[2 : rows + 2] = bias64(bias, rows)
    assert found is not None
    assert torch.equal(found.double(), expected)
    assert torch.equal(out.double(), expected.expand(3, -1))


def test_staged_bytes_cover_every_tensor_but_the_shared_columns(kernels: KernelBackend) -> None:
    delta = sparse((64, 48), 1, kept=48, bias=32)
    assert isinstance(delta.bias, torch.Tensor)
    own = sum(t.nbytes for t in (delta.codes, delta.step, delta.bias))
    assert own <= kernels.stage_all([[Placed(0, delta)]]).nbytes < own + 256
