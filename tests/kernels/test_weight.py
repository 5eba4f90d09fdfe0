"""Packed weights: whatever the shape, the values are all there, row by row."""

import pytest
import torch

from tests.kernels.weights import packed_for, unpacked
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.cpu.weight import unpacked as unpacked_in_torch
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", [(48, 64), (37, 95), (5, 7), (16, 1), (1, 1), (3, 0), (0, 8)])
def test_rows_of_a_packed_weight_are_the_weights(
    kernels: KernelBackend, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape).to(dtype)
    assert torch.equal(unpacked(kernels, packed_for(kernels, weight)), weight)


def test_rows_are_looked_up_in_any_order_and_repeatedly(kernels: KernelBackend) -> None:
    weight, index = torch.randn(100, 64).bfloat16(), torch.randint(0, 100, (50,))
    out = torch.empty(50, 64, dtype=torch.bfloat16)
    kernels.lookup(packed_for(kernels, weight), index, out)
    assert torch.equal(out, weight[index])


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", [(48, 64), (37, 95)])
def test_unpacking_in_torch_undoes_packing(
    cpu_backend: CpuBackend, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = torch.randn(shape).to(dtype)
    assert torch.equal(unpacked_in_torch(packed_for(cpu_backend, weight)), weight)


@pytest.mark.compiler
def test_what_cannot_be_packed_or_looked_up_is_refused(cpu_backend: CpuBackend) -> None:
    weight, out = torch.ones(4, 8), torch.empty(1, 8)
    with pytest.raises(BadArgument, match=r"weight: expected \[out, in\]"):
        cpu_backend.pack(torch.ones(4))
    with pytest.raises(BadArgument, match="weight: expected dtype"):
        cpu_backend.pack(weight.double())
    with pytest.raises(BadArgument, match="contiguous"):
        cpu_backend.pack(weight.T)
    with pytest.raises(BadArgument, match="out: expected shape"):
        cpu_backend.lookup(weight, torch.tensor([0]), torch.empty(1, 7))
    for missing in (-1, 4):
        with pytest.raises(BadArgument, match="index: beyond the 4 rows"):
            cpu_backend.lookup(weight, torch.tensor([missing]), out)
