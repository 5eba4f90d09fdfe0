"""The CPU backend: one call into C++ per fused linear, for all variants of the step.

Owns: checking what the kernels trust, and the calls. ctypes releases the GIL for each of them.
What the kernels do not speed up goes to the reference.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import astuple
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_spans
from tsugiki_kernels.cpu import attention, build, elementwise, sampling, staging
from tsugiki_kernels.cpu import linear as dense
from tsugiki_kernels.cpu.program import Operation, Program, Step, run
from tsugiki_kernels.cpu.records import AddBiases, Apply, Draw, Reconstruct
from tsugiki_kernels.cpu.staging import DTYPES, CpuStaged
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import (
    Activation,
    Allocate,
    AttentionBatch,
    ColumnDraw,
    DenseDelta,
    Draws,
    KernelBackend,
    Logprobs,
    LowRankDelta,
    Placed,
    SignDelta,
    Span,
    SparseDelta,
    Staged,
    StagedLinears,
    empty_extent,
)
from tsugiki_kernels.reference import ReferenceBackend

_APPLY = {
    SparseDelta: "tsugiki_sparse_apply",
    SignDelta: "tsugiki_sign_apply",
    DenseDelta: "tsugiki_dense_apply",
    LowRankDelta: "tsugiki_low_rank_apply",
}
_RECONSTRUCT = {
    SparseDelta: "tsugiki_sparse_reconstruct",
    SignDelta: "tsugiki_sign_reconstruct",
}


class CpuBackend:
    """C++ kernels on the CPU; attributes `level` (instruction set) and `name` say which."""

    name = "cpu"

    def __init__(
        self,
        cache_dir: Path,
        find_compiler: build.FindCompiler = build.find_compiler,
        prebuilt: Path = build.PREBUILT,
        processor: frozenset[str] | None = None,
    ) -> None:
        """Load the kernels, compiling them into `cache_dir` when they are not there yet.

        `processor`: instruction sets to restrict oneself to; None: all that this one has.

        Raises:
            BackendUnavailable: see build.load_library.
        """
        self._library, level = build.load_library(cache_dir, find_compiler, prebuilt, processor)
        self.level = level.name
        self._reference = ReferenceBackend()
        self._recorded: list[Step] | None = None  # None: operations are carried out at once

    def record(self, body: Callable[[KernelBackend], None]) -> Program:
        """See KernelBackend.record."""
        recorder = copy(self)
        steps: list[Step] = []
        recorder._recorded = steps
        body(recorder)
        return Program(self._library, steps)

    def _do(self, operation: Operation) -> None:
        if self._recorded is None:
            run(self._library, operation)
        else:
            self._recorded.append(operation)

    def _do_in_torch(self, call: Callable[[], object]) -> None:
        if self._recorded is None:
            call()
        else:
            self._recorded.append(call)

    def stage(self, parts: Sequence[Placed]) -> Staged:
        """See KernelBackend.stage.

        Raises:
            BadArgument: see staging.stage_all.
        """
        return self.stage_all([parts]).linears[0]

    def stage_all(
        self,
        linears: Sequence[Sequence[Placed]],
        others: Sequence[Tensor] = (),
        allocate: Allocate = empty_extent,
    ) -> StagedLinears:
        """See KernelBackend.stage_all.

        Raises:
            BadArgument: see staging.stage_all.
        """
        return staging.stage_all(linears, others, allocate)

    def draw_columns(self, draw: ColumnDraw) -> Tensor:
        """See KernelBackend.draw_columns.

        Raises:
            BadArgument: groups from which more is to be kept than they have, or too many columns.
        """
        groups, rest = divmod(draw.columns, draw.group_size)
        kept_of_rest = draw.kept_of_rest if rest else 0
        if not (
            0 < draw.kept <= draw.group_size and kept_of_rest <= rest and draw.columns <= 65536
        ):
            raise BadArgument(f"draw: expected to keep some of each group, found {draw}")
        out = torch.empty(draw.tiles, groups * draw.kept + kept_of_rest, dtype=torch.uint16)
        self._library.tsugiki_draw_columns(
            ctypes.byref(Draw(*astuple(draw))), ctypes.c_void_p(out.data_ptr())
        )
        return out

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """See KernelBackend.apply.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        check_spans(x, out, len(staged), spans)
        if not staged:
            return
        linears = [own(variant) for variant in staged]
        _check_step(x, out, linears)
        addresses = array("Q", [linear.address for linear in linears])
        flat = array("q", chain.from_iterable(spans))
        call = Apply(
            x.data_ptr(),
            x.stride(0),
            x.shape[1],
            out.data_ptr(),
            out.stride(0),
            DTYPES[x.dtype],
            DTYPES[out.dtype],
            torch.get_num_threads(),
            0,
            addresses.buffer_info()[0],
            flat.buffer_info()[0],
            len(linears),
        )
        self._do(Operation(_APPLY[linears[0].kind], call, kept=(x, out, linears, addresses, flat)))

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """See KernelBackend.reconstruct.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        linear = own(staged)
        _check_reconstruct(base, out, linear)
        if linear.source is not None:
            source = linear.source
            return self._do_in_torch(lambda: self._reference.reconstruct(base, source, out))
        if linear.covered < base.shape[0]:
            self._do_in_torch(lambda: out.copy_(base))
        call = Reconstruct(
            linear.address,
            base.data_ptr(),
            out.data_ptr(),
            linear.inputs,
            DTYPES[base.dtype],
            torch.get_num_threads(),
        )
        self._do(Operation(_RECONSTRUCT[linear.kind], call, kept=(linear, base, out)))

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """See KernelBackend.bias.

        Raises:
            BadArgument: fewer rows than the parts have.
        """
        linear = own(staged)
        if not linear.has_bias:
            return None
        if rows < linear.width:
            raise BadArgument(f"rows: expected at least {linear.width}, found {rows}")
        total = torch.zeros(rows)
        part_bytes = ctypes.sizeof(staging.RECORDS[linear.kind])
        call = AddBiases(linear.address, part_bytes, total.data_ptr())
        run(self._library, Operation("tsugiki_bias", call))
        return total

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See KernelBackend.linear.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(dense.linear(x, weight, bias, out, spans))

    def linear_rebuilt(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        staged: Staged,
        out: Tensor,
        spans: Sequence[Span],
    ) -> None:
        """See KernelBackend.linear_rebuilt.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        delta = own(staged)
        _check_staged(weight, delta)
        if delta.source is None:
            return self._do(dense.linear_rebuilt(x, weight, bias, delta, out, spans))
        source = delta.source

        def in_two() -> None:  # a recorded step keeps no rebuilt weight
            rebuilt = torch.empty_like(weight)
            self._reference.reconstruct(weight, source, rebuilt)
            run(self._library, dense.linear(x, rebuilt, bias, out, spans))

        self._do_in_torch(in_two)

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        index: Tensor | None,
        eps: float,
        out: Tensor,
        add: Tensor | None = None,
    ) -> None:
        """See KernelBackend.rms_norm.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(elementwise.rms_norm(x, weight, index, eps, out, add))

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """See KernelBackend.rotate.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(elementwise.rotate(x, cos_sin))

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """See KernelBackend.gate.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(elementwise.gate(gate_up, activation, out))

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.gather.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(elementwise.gather(x, index, out))

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """See KernelBackend.write_kv.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(attention.write_kv(k, v, cache, where))

    def paged_attention(
        self,
        q: Tensor,
        cache: Tensor,
        where: AttentionBatch,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """See KernelBackend.paged_attention.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        self._do(attention.paged_attention(q, cache, where, scale, window, out))

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        return sampling.sample(self._library, logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        return sampling.logprobs(self._library, logits, rows, token_ids, width)


def own(staged: Staged) -> CpuStaged:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    if not isinstance(staged, CpuStaged):
        raise BadArgument(f"staged: made by another backend ({type(staged).__name__})")
    return staged


def _check_step(x: Tensor, out: Tensor, linears: Sequence[CpuStaged]) -> None:
    for name, tensor in (("x", x), ("out", out)):
        if tensor.stride(1) != 1 or tensor.device.type != "cpu":
            raise BadArgument(
                f"{name}: expected unit stride in the last dimension on cpu, found strides "
                f"{tensor.stride()} on {tensor.device}"
            )
    inputs, outputs, kind = x.shape[1], out.shape[1], linears[0].kind
    for linear in linears:
        if linear.kind is not kind:
            raise BadArgument(
                f"staged: expected one kind of delta, found {kind.__name__} and "
                f"{linear.kind.__name__}"
            )
        if linear.inputs != inputs or linear.width > outputs:
            raise BadArgument(
                f"x, out: a delta of {linear.inputs} inputs and outputs up to {linear.width} does "
                f"not fit {tuple(x.shape)} and {tuple(out.shape)}"
            )


def _check_staged(base: Tensor, linear: CpuStaged) -> None:
    if base.ndim != 2 or base.shape[1] != linear.inputs or base.shape[0] < linear.width:
        raise BadArgument(
            f"base: expected [at least {linear.width}, {linear.inputs}], found {tuple(base.shape)}"
        )


def _check_reconstruct(base: Tensor, out: Tensor, linear: CpuStaged) -> None:
    _check_staged(base, linear)
    if base.dtype not in ACTIVATIONS:
        raise BadArgument(f"base: expected float32, bfloat16 or float16, found {base.dtype}")
    if out.dtype != base.dtype or out.shape != base.shape:
        raise BadArgument(
            f"out: expected {base.dtype} {tuple(base.shape)} as base, found {out.dtype} "
            f"{tuple(out.shape)}"
        )
    if out.data_ptr() == base.data_ptr():
        raise BadArgument("out: may not be base itself")
    for name, tensor in (("base", base), ("out", out)):
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise BadArgument(f"{name}: expected a contiguous tensor on cpu")
