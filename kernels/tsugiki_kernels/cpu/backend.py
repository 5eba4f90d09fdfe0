"""The CPU backend: one call into C++ per fused linear, for all variants of the step.

Owns: checking what the kernels trust, and the calls. ctypes releases the GIL for each of them.
What the kernels do not speed up goes to the reference.
"""

import ctypes
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path

import torch
from torch import Tensor

from tsugiki_kernels.check import check_own, check_spans, kept_columns
from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.cpu import (
    attention,
    build,
    codebooks,
    deltas,
    elementwise,
    lattice,
    sampling,
    staging,
)
from tsugiki_kernels.cpu import linear as dense
from tsugiki_kernels.cpu import weight as packed
from tsugiki_kernels.cpu.deltas import own
from tsugiki_kernels.cpu.program import Operation, Program, Step, run
from tsugiki_kernels.cpu.records import Draw
from tsugiki_kernels.cpu.table import CpuTable, collect
from tsugiki_kernels.delta_table import TableShape, by_kind
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.interface import (
    Activation,
    Allocate,
    Deltas,
    DeltaTable,
    KernelBackend,
    Shapes,
    Span,
    Staged,
    StagedLinears,
    empty_extent,
)
from tsugiki_kernels.lattice import LatticeWeight
from tsugiki_kernels.operands import AttentionBatch, ColumnDraw, Draws, Logprobs
from tsugiki_kernels.reference import ReferenceBackend

_FORMS = (dense, codebooks, lattice)  # of a base's linears


class CpuBackend(KernelBackend):
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

    def _change(self, delta: Operation) -> None:
        """Deltas added to an output; in one pass with the linear that was asked for just before."""
        last = self._recorded[-1] if self._recorded else None
        both = None
        if isinstance(last, Operation):
            both = next(filter(None, (form.changed(last, delta) for form in _FORMS)), None)
        if self._recorded is None or both is None:
            self._do(delta)
        else:
            self._recorded[-1] = both

    def _do_in_torch(self, call: Callable[[], object]) -> None:
        if self._recorded is None:
            call()
        else:
            self._recorded.append(call)

    def pack(self, weight: Tensor) -> None:
        """See KernelBackend.pack.

        Raises:
            BadArgument: another dtype or layout.
        """
        packed.pack(weight)

    def lookup(self, weight: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.lookup."""
        self._do(packed.lookup(weight, index, out))

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
            BadArgument: see check.kept_columns.
        """
        out = torch.empty(draw.tiles, kept_columns(draw), dtype=torch.uint16)
        # not dataclasses.astuple, which copies deeply: a millisecond for the masks of one variant
        wanted = Draw(*(getattr(draw, name) for name, *_ in Draw._fields_))
        self._library.tsugiki_draw_columns(ctypes.byref(wanted), ctypes.c_void_p(out.data_ptr()))
        return out

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """See KernelBackend.apply."""
        check_spans(x, out, len(staged), spans)
        if staged:
            self._change(deltas.apply(x, out, [own(variant) for variant in staged], spans))

    def collect(self, shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
        """See KernelBackend.collect.

        Raises:
            BadArgument: a delta that does not fit its linear.
        """
        return tuple(collect(kind, shapes, of_kind) for kind, of_kind in by_kind(staged, own))

    def delta_table(
        self, kind: type[Delta], shapes: Shapes, rows: int, capacity: int
    ) -> DeltaTable:
        """See KernelBackend.delta_table."""
        return CpuTable(TableShape(kind, shapes, rows, capacity))

    def apply_table(self, x: Tensor, out: Tensor, table: DeltaTable, place: int) -> None:
        """See KernelBackend.apply_table."""
        self._change(deltas.apply_table(x, out, check_own("table", table, CpuTable), place))

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """See KernelBackend.reconstruct."""
        linear = own(staged)
        deltas.check_reconstruct(base, out, linear)
        if linear.source is not None:
            source = linear.source
            return self._do_in_torch(lambda: self._rebuild_in_torch(base, source, out))
        self._do(deltas.reconstruct(base, linear, out))

    def _rebuild_in_torch(self, base: Tensor, source: Staged, out: Tensor) -> None:
        self._reference.reconstruct(packed.unpacked(base), source, out)
        packed.pack(out)

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """See KernelBackend.bias.

        Raises:
            BadArgument: fewer rows than the parts have.
        """
        return deltas.bias(self._library, own(staged), rows)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See KernelBackend.linear."""
        self._do(dense.linear(x, weight, bias, out, spans))

    def linear_codebooks(
        self,
        x: Tensor,
        weight: CodebookWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsCodebooks.linear_codebooks."""
        self._do(codebooks.linear(x, weight, bias, out, spans))

    def linear_lattice(
        self,
        x: Tensor,
        weight: LatticeWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsLattices.linear_lattice."""
        self._do(lattice.linear(x, weight, bias, out, spans))

    def linear_rebuilt(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        staged: Staged,
        out: Tensor,
        spans: Sequence[Span],
    ) -> None:
        """See KernelBackend.linear_rebuilt."""
        delta = own(staged)
        deltas.check_staged(weight, delta)
        if delta.source is None:
            return self._do(dense.linear_rebuilt(x, weight, bias, delta, out, spans))
        source = delta.source

        def in_two() -> None:  # a recorded step keeps no rebuilt weight
            rebuilt = torch.empty_like(weight)
            self._rebuild_in_torch(weight, source, rebuilt)
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
        """See KernelBackend.rms_norm."""
        self._do(elementwise.rms_norm(x, weight, index, eps, out, add))

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """See KernelBackend.rotate."""
        self._do(elementwise.rotate(x, cos_sin))

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """See KernelBackend.gate."""
        self._do(elementwise.gate(gate_up, activation, out))

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.gather."""
        self._do(elementwise.gather(x, index, out))

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """See KernelBackend.write_kv."""
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
        """See KernelBackend.paged_attention."""
        self._do(attention.paged_attention(q, cache, where, scale, window, out))

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample."""
        return sampling.sample(self._library, logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs."""
        return sampling.logprobs(self._library, logits, rows, token_ids, width)
