"""The CUDA backend: our kernels where they are faster or save memory, torch's operations elsewhere.

Owns: which of the two computes an operation, and recording. Work lists are built on the host and
copied before the launches that walk them: those of tables before each run of what was recorded.
What concerns deltas is in deltas.py, where variants lie in arena.py.
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from tsugiki_kernels.check import kept_columns
from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.cuda import (
    attention,
    codebooks,
    deltas,
    elementwise,
    lattice,
    sampling,
    sparse,
    staging,
)
from tsugiki_kernels.cuda import linear as dense
from tsugiki_kernels.cuda.arena import Arena
from tsugiki_kernels.cuda.kinds import form_of
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.pinned_ring import PinnedRing
from tsugiki_kernels.cuda.program import Execution, Program, Steps
from tsugiki_kernels.cuda.table import CudaTable
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.delta_table import StagedTable, TableShape
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.device import Device
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
from tsugiki_kernels.variant_room import VariantRoom


class CudaBackend(KernelBackend):
    """CUDA kernels through a launcher."""

    name = "cuda"

    def __init__(self, launcher: Launcher, device: Device) -> None:
        """Both are of one GPU; or of the CPU, where tests execute the kernels."""
        self._device = device
        self._ring = PinnedRing(device)
        self._arena = Arena(device, self._ring)
        self._uploader = Uploader(device, self._arena)
        self._formulas = ReferenceBackend()
        self._execution = Execution(launcher)

    @property
    def _launcher(self) -> Launcher:
        """Of the operations that are asked for: a recorder's keeps launches."""
        return self._execution.launcher

    def record(self, body: Callable[[KernelBackend], None]) -> Program:
        """See KernelBackend.record."""
        recorder, recorded = copy(self), Steps()
        recorder._execution = self._execution.recording(recorded)
        body(recorder)
        return Program(recorded, self._device)

    def reserve(self, nbytes: int) -> VariantRoom:
        """See ReservesRoom.reserve: one buffer on the device.

        Raises:
            BadArgument: a variant was staged already.
        """
        self._arena.reserve(nbytes)
        return self._arena

    def pack(self, weight: Tensor) -> None:
        """See KernelBackend.pack: as it is stored."""

    def lookup(self, weight: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.lookup."""
        torch.index_select(weight, 0, index, out=out)

    def stage_all(
        self,
        linears: Sequence[Sequence[Placed]],
        others: Sequence[Tensor] = (),
        allocate: Allocate = empty_extent,
    ) -> StagedLinears:
        """See KernelBackend.stage_all. The extent is the device's; `allocate` is for host memory.

        Raises:
            BadArgument: see staging.stage_all.
        """
        return staging.stage_all(linears, others, self._uploader)

    def draw_columns(self, draw: ColumnDraw) -> Tensor:
        """See KernelBackend.draw_columns: drawn on the device, between two steps.

        Raises:
            BadArgument: see check.kept_columns.
        """
        shape = torch.Size((draw.tiles, kept_columns(draw)))
        if not shape.numel():
            return torch.empty(shape, dtype=torch.uint16, device=self._launcher.device)
        with self._arena.still:
            region = self._arena.take(2 * shape.numel())
            memory = region.memory()[: 2 * shape.numel()]
            columns = region.follow(memory.view(torch.uint16).view(shape))
            sparse.draw_columns(self._execution.direct, draw, columns)
        return columns

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """See KernelBackend.apply.

        Raises:
            BadArgument: see deltas.apply.
        """
        deltas.apply(self._execution, x, out, staged, spans)

    def collect(self, shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
        """See KernelBackend.collect.

        Raises:
            BadArgument: a delta that does not fit its linear.
        """
        return deltas.collect(shapes, staged)

    def delta_table(
        self, kind: type[Delta], shapes: Shapes, rows: int, capacity: int
    ) -> DeltaTable:
        """See KernelBackend.delta_table."""
        shape, form = TableShape(kind, shapes, rows, capacity), form_of(kind)
        if form is None:
            return StagedTable(shape)
        return CudaTable(shape, form, self._device, self._ring)

    def apply_table(self, x: Tensor, out: Tensor, table: DeltaTable, place: int) -> None:
        """See KernelBackend.apply_table.

        Raises:
            BadArgument: see deltas.apply_table.
        """
        deltas.apply_table(self._execution, x, out, table, place)

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """See KernelBackend.reconstruct.

        Raises:
            BadArgument: see deltas.reconstruct.
        """
        deltas.reconstruct(self._execution, base, staged, out)

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """See KernelBackend.bias.

        Raises:
            BadArgument: fewer rows than the parts have.
        """
        return deltas.bias(staged, rows, self._launcher.device)

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See KernelBackend.linear."""
        chosen = [(0, len(x))] if spans is None else spans
        dense.check(x, weight, bias, out, chosen)
        self._execution.do(lambda: dense.linear(x, weight, bias, out, chosen))

    def linear_codebooks(
        self,
        x: Tensor,
        weight: CodebookWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsCodebooks.linear_codebooks."""
        chosen = [(0, len(x))] if spans is None else spans
        codebooks.linear(self._execution, x, weight, bias, out, chosen)

    def linear_lattice(
        self,
        x: Tensor,
        weight: LatticeWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsLattices.linear_lattice."""
        chosen = [(0, len(x))] if spans is None else spans
        lattice.linear(self._execution, x, weight, bias, out, chosen)

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
        rebuilt = self._execution.scratch.take(weight.dtype, weight.numel()).view(weight.shape)
        self.reconstruct(weight, staged, rebuilt)
        self.linear(x, rebuilt, bias, out, spans)

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
        elementwise.rms_norm(self._launcher, x, weight, index, eps, out, add)

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """See KernelBackend.rotate."""
        elementwise.rotate(self._launcher, x, cos_sin)

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """See KernelBackend.gate."""
        elementwise.gate(self._launcher, gate_up, activation, out)

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.gather."""
        elementwise.gather(self._launcher, x, index, out)

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """See KernelBackend.write_kv."""
        if attention.fits(cache):
            attention.write_kv(self._launcher, k, v, cache, where)
        else:
            self._execution.do(lambda: self._formulas.write_kv(k, v, cache, where))

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
        if not attention.fits(cache):
            formula = self._formulas.paged_attention  # it reads lengths on the host
            self._execution.do(
                lambda: formula(q, cache, where, scale, window, out), capturable=False
            )
            return
        attention.paged_attention(self._execution, q, cache, where, scale, window, out)

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample."""
        return sampling.sample(self._launcher, logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs."""
        return sampling.logprobs(self._launcher, logits, rows, token_ids, width)
