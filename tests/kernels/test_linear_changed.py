"""A recorded linear and the deltas on top of it are one pass with the bits of two calls."""

import pytest
import torch

from tests.kernels.deltas import KINDS, cast
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.cpu.program import Program
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.interface import KernelBackend, Span

pytestmark = pytest.mark.compiler
INPUTS, OUTPUTS = 147, 400
PARTS = {"at sixteens": (112, 80, 200), "between sixteens": (100, 80, 200)}
SPANS: list[list[Span]] = [[(0, 1)], [(0, 2), (2, 3), (5, 6)], [(1, 10), (12, 40)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spans", SPANS, ids=str)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_together_they_have_the_bits_of_one_after_the_other(
    cpu_backend: CpuBackend, kind: str, parts: str, spans: list[Span], dtype: torch.dtype
) -> None:
    first, second, third = PARTS[parts]
    places = {0: first, first: second, first + second: third}
    staged = [
        cpu_backend.stage(
            [
                Placed(offset, cast(KINDS[kind]((rows, INPUTS), seed), dtype))
                for offset, rows in places.items()
            ]
        )
        for seed, _ in enumerate(spans)
    ]
    x = torch.randn(41, INPUTS).to(dtype)
    weight, bias = torch.randn(OUTPUTS, INPUTS).to(dtype), torch.randn(OUTPUTS).to(dtype)
    out = torch.empty(41, OUTPUTS, dtype=dtype)

    def body(kernels: KernelBackend) -> None:
        kernels.linear(x, weight, bias, out)
        kernels.apply(x, out, staged, spans)

    body(cpu_backend)
    expected = out.clone()
    program = cpu_backend.record(body)
    for _ in range(2):
        out.zero_()
        program.run()
        assert torch.equal(out, expected)


def test_deltas_on_another_output_stay_calls_of_their_own(cpu_backend: CpuBackend) -> None:
    staged = cpu_backend.stage([Placed(0, KINDS["low rank"]((20, 30), 1))])
    x, weight = torch.randn(3, 30), torch.randn(20, 30)
    out, other = torch.empty(3, 20), torch.zeros(3, 20)

    def body(kernels: KernelBackend) -> None:
        kernels.linear(x, weight, None, out)
        kernels.apply(x, other, [staged], [(0, 3)])

    program: Program = cpu_backend.record(body)
    program.run()
    found = out.clone(), other.clone()
    other.zero_()
    body(cpu_backend)
    assert torch.equal(found[0], out)
    assert torch.equal(found[1], other)
