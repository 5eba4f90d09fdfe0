"""Weights that are looked up: every backend's linear and deltas against the formula in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.deltas import dense64, looked_up64
from tsugiki_kernels.codebooks import CodebookWeight, IndexMap
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import CodebookDelta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

FORMS = [(4, 1, 64), (4, 8, 576), (4, 2, 48), (3, 1, 64), (3, 4, 96), (2, 1, 80), (2, 4, 64)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}


@pytest.fixture(params=["reference", "cpu"])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "reference":
        return ReferenceBackend()
    backend: CpuBackend = request.getfixturevalue("cpu_backend")
    return backend


def index(bits: int, groups: int, columns: int, rows: int = 37) -> IndexMap:
    generator = torch.Generator().manual_seed(bits + groups)
    size = (rows, columns * bits // 8)
    codes = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return IndexMap((rows, columns), bits, groups, codes)


def values(of: IndexMap, seed: int = 1) -> Tensor:
    return torch.randn(of.codebook_shape, generator=torch.Generator().manual_seed(seed)).half()


def delta(of: IndexMap, seed: int, *, coded: bool) -> CodebookDelta:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randn(of.shape[0], generator=generator)
    if not coded:
        return CodebookDelta(of, 0.3, values(of, seed), None, bias)
    codes = torch.randint(-128, 128, of.codebook_shape, generator=generator).to(torch.int8)
    step = torch.rand(of.shape[0], generator=generator).half()
    return CodebookDelta(of, 0.02, codes, step, bias)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    worst = float((found.double() - expected).abs().max())
    return worst <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("bits", "groups", "columns"), FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_sketched_linear_is_its_dense_product(
    kernels: KernelBackend, bits: int, groups: int, columns: int, dtype: torch.dtype
) -> None:
    of = index(bits, groups, columns)
    weight = CodebookWeight(of, values(of))
    x = torch.randn(9, columns, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = torch.randn(37, generator=torch.Generator().manual_seed(3)).to(dtype)
    out = torch.full((9, 37), 5.0).to(dtype)
    kernels.linear_codebooks(x, weight, bias, out, [(1, 3), (4, 9)])  # type: ignore[attr-defined]
    expected = x.double() @ looked_up64(of, weight.codebooks.double()).T + bias.double()
    assert close(out[1:3], expected[1:3], dtype)
    assert close(out[4:], expected[4:], dtype)
    assert bool((out[[0, 3]] == 5.0).all())


@pytest.mark.parametrize("coded", [False, True], ids=["halves", "bytes"])
@pytest.mark.parametrize(("bits", "groups", "columns"), FORMS)
def test_a_change_of_codebooks_is_added_as_its_dense_product(
    kernels: KernelBackend, bits: int, groups: int, columns: int, coded: bool
) -> None:
    of = index(bits, groups, columns)
    variants = [delta(of, seed, coded=coded) for seed in (4, 5)]
    staged = [kernels.stage([Placed(3, variant)]) for variant in variants]
    generator = torch.Generator().manual_seed(6)
    x, out = torch.randn(7, columns, generator=generator), torch.randn(7, 48, generator=generator)
    expected = out.double().clone()
    for variant, (start, stop) in zip(variants, [(0, 2), (3, 7)], strict=True):
        assert isinstance(variant.bias, Tensor)
        change = x[start:stop].double() @ dense64(variant).T + variant.bias.double()
        expected[start:stop, 3:40] += change
    kernels.apply(x, out, staged, [(0, 2), (3, 7)])
    assert close(out, expected, torch.float32)


def test_a_row_has_the_same_bits_whatever_else_is_computed(cpu_backend: CpuBackend) -> None:
    of = index(4, 4, 576)
    weight = CodebookWeight(of, values(of))
    x = torch.randn(11, 576, generator=torch.Generator().manual_seed(7)).bfloat16()
    whole = torch.zeros(11, 37, dtype=torch.bfloat16)
    cpu_backend.linear_codebooks(x, weight, None, whole)
    for row in range(11):
        alone = torch.zeros(1, 37, dtype=torch.bfloat16)
        cpu_backend.linear_codebooks(x[row : row + 1], weight, None, alone)
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("offset", [16, 5], ids=["in one pass", "one after the other"])
def test_rows_of_many_variants_and_the_base_in_one_recorded_linear(
    cpu_backend: CpuBackend, dtype: torch.dtype, offset: int
) -> None:
    of = index(4, 4, 576, rows=53)
    weight, part = CodebookWeight(of, values(of)), of.rows(offset, 53)
    variants = [delta(part, seed, coded=seed != 4) for seed in range(1, 8)]
    spans = [(0, 1), (1, 2), (2, 3), (4, 5), (7, 10), (10, 21), (22, 23)]
    x = torch.randn(24, 576, generator=torch.Generator().manual_seed(8)).to(dtype)
    bias = torch.randn(53, generator=torch.Generator().manual_seed(9)).to(dtype)
    staged = [cpu_backend.stage([Placed(offset, variant)]) for variant in variants]

    def served(chosen: list[int]) -> Tensor:
        out = torch.zeros(24, 53).to(dtype)

        def body(kernels: KernelBackend) -> None:
            rows = [spans[v] for v in chosen]
            kernels.linear_codebooks(x, weight, bias, out)  # type: ignore[attr-defined]
            kernels.apply(x, out, [staged[v] for v in chosen], rows)

        cpu_backend.record(body).run()
        return out

    found = served(list(range(7)))
    expected = x.double() @ looked_up64(of, weight.codebooks.double()).T + bias.double()
    for variant, (start, stop) in zip(variants, spans, strict=True):
        assert isinstance(variant.bias, Tensor)
        change = x[start:stop].double() @ dense64(variant).T + variant.bias.double()
        expected[start:stop, offset:] += change
    assert close(found, expected, dtype)
    for variant in (3, 5):
        start, stop = spans[variant]
        assert torch.equal(served([variant])[start:stop], found[start:stop])


def test_index_maps_are_shared_and_never_copied(kernels: KernelBackend) -> None:
    of = index(4, 1, 64)
    staged = kernels.stage_all([[Placed(0, delta(of, 1, coded=True))]])
    assert staged.nbytes < 37 * 16 + 37 * 2 + 37 * 4 + 1024


def refused(kernels: KernelBackend, change: Callable[[], None]) -> str:
    with pytest.raises(BadArgument) as error:
        change()
    return str(error.value)


def test_what_breaks_the_contract_is_named(kernels: KernelBackend) -> None:
    of = index(4, 1, 64)
    weight = CodebookWeight(of, values(of))
    x, out = torch.zeros(2, 64), torch.zeros(2, 37)

    def linear(of_weight: CodebookWeight) -> Callable[[], None]:
        return lambda: kernels.linear_codebooks(x, of_weight, None, out)  # type: ignore[attr-defined]

    wrong = IndexMap(of.shape, 5, 1, of.codes)
    assert "bits" in refused(kernels, linear(CodebookWeight(wrong, weight.codebooks)))
    uneven = IndexMap(of.shape, 4, 3, of.codes)
    assert "groups" in refused(kernels, linear(CodebookWeight(uneven, weight.codebooks)))
    assert "codebooks" in refused(kernels, linear(CodebookWeight(of, weight.codebooks.float())))
