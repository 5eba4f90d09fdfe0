"""Recorded operations: the same values as at once, on what the tensors hold at each run."""

import weakref

import pytest
import torch
from torch import Tensor

from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import DenseDelta, LowRankDelta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend


class Chain:
    """A little of what a layer does, on tensors that stay where they are."""

    def __init__(self, rows: int = 40) -> None:
        self.x, self.normed = torch.randn(rows, 64), torch.empty(rows, 64)
        self.out = torch.zeros(rows, 32)
        self.weight = torch.rand(1, 64)

    def run(self, kernels: KernelBackend) -> None:
        for _ in range(20):
            kernels.rms_norm(self.x, self.weight, None, 1e-5, self.normed, self.normed)
            kernels.gate(self.normed, "silu", self.out)

    def fresh(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        self.x.copy_(torch.randn(self.x.shape, generator=generator))
        self.normed.zero_()
        return self.out


def test_a_program_computes_what_its_operations_compute_at_once(kernels: KernelBackend) -> None:
    chain = Chain()
    program = kernels.record(chain.run)
    for seed in (1, 2, 3):
        chain.fresh(seed)
        chain.run(kernels)
        expected = chain.out.clone()
        found = chain.fresh(seed).zero_()
        program.run()
        assert torch.equal(found, expected)


def test_recording_computes_nothing(kernels: KernelBackend) -> None:
    chain = Chain()
    kernels.record(chain.run)
    assert not chain.out.any()


def test_the_threads_of_a_program_share_its_work_without_losing_any(
    kernels: KernelBackend,
) -> None:
    chain = Chain(rows=3000)
    program = kernels.record(chain.run)
    chain.fresh(1)
    program.run()
    first = chain.out.clone()
    for _ in range(5):
        chain.fresh(1).zero_()
        program.run()
        assert torch.equal(chain.out, first)


@pytest.mark.compiler
def test_what_torch_does_keeps_its_place_between_native_operations(
    cpu_backend: CpuBackend,
) -> None:
    base, rebuilt, out = torch.randn(6, 8), torch.empty(6, 8), torch.empty(6, 4)
    low_rank = LowRankDelta(torch.randn(2, 8), torch.randn(6, 2), 0.5, None)
    staged = cpu_backend.stage([Placed(0, low_rank)])

    def body(kernels: KernelBackend) -> None:
        kernels.reconstruct(base, staged, rebuilt)
        kernels.gate(rebuilt, "silu", out)

    program = cpu_backend.record(body)
    for _ in range(2):
        base.normal_()
        program.run()
        found = out.clone()
        body(cpu_backend)
        assert torch.equal(found, out)


@pytest.mark.compiler
def test_a_program_says_which_operation_refused_its_arguments(cpu_backend: CpuBackend) -> None:
    x, index, out = torch.randn(4, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 8)
    program = cpu_backend.record(lambda kernels: kernels.gather(x, index, out))
    program.run()
    assert torch.equal(out[0], x[0])
    index[0] = 4
    with pytest.raises(BadArgument, match="index: beyond the 4 rows"):
        program.run()


@pytest.mark.compiler
def test_a_program_keeps_the_operands_of_its_linears(cpu_backend: CpuBackend) -> None:
    operands = [torch.randn(3, 8), torch.randn(4, 8), torch.randn(4), torch.empty(3, 4)]
    program = cpu_backend.record(lambda kernels: kernels.linear(*operands))
    alive = [weakref.ref(operand) for operand in operands]
    operands.clear()
    assert all(ref() is not None for ref in alive)
    del program
    assert all(ref() is None for ref in alive)


@pytest.mark.compiler
def test_a_program_keeps_the_variants_it_reads(cpu_backend: CpuBackend) -> None:
    x, out = torch.randn(2, 8), torch.zeros(2, 6)
    weight = torch.randn(6, 8)

    def body(kernels: KernelBackend) -> None:
        staged = cpu_backend.stage([Placed(0, DenseDelta((6, 8), weight, None))])
        kernels.apply(x, out, [staged], [(0, 2)])

    cpu_backend.record(body).run()
    torch.testing.assert_close(out, x @ weight.T)
