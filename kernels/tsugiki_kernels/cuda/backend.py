"""The CUDA backend: our kernels where they are faster or save memory, torch's operations elsewhere.

Owns: which of the two computes an operation, and recording. Work lists are built on the host and
copied before the launches that walk them: those of tables before each run of what was recorded.

Compiled for the GPU, executed on the CPU by the tests, not yet run on a GPU.
"""

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from tsugiki_kernels.check import check_own, check_spans
from tsugiki_kernels.cuda import attention, elementwise, sampling, sparse, staging
from tsugiki_kernels.cuda import linear as dense
from tsugiki_kernels.cuda.kinds import Form, form_of
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.pinned_ring import PinnedRing
from tsugiki_kernels.cuda.program import Program, RecordingLauncher, Steps
from tsugiki_kernels.cuda.staging import CudaStaged, own
from tsugiki_kernels.cuda.table import CudaTable, collect
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.cuda.work_list import work_list
from tsugiki_kernels.delta_table import StagedDeltas, StagedTable, TableShape, by_kind
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.device import Device
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.formulas import bias_values
from tsugiki_kernels.interface import (
    Activation,
    Allocate,
    AttentionBatch,
    ColumnDraw,
    Deltas,
    DeltaTable,
    Draws,
    KernelBackend,
    Logprobs,
    Shapes,
    Span,
    Staged,
    StagedLinears,
    empty_extent,
)
from tsugiki_kernels.reference import ReferenceBackend


class CudaBackend:
    """CUDA kernels through a launcher."""

    name = "cuda"

    def __init__(self, launcher: Launcher, device: Device) -> None:
        """Both are of one GPU; or of the CPU, where tests execute the kernels."""
        self._direct = self._launcher = launcher  # a recorder's `_launcher` keeps launches
        self._device = device
        self._uploader = Uploader(device)
        self._ring = PinnedRing(device)
        self._formulas = ReferenceBackend()
        self._scratches: dict[torch.dtype, Tensor] = {}
        self._recorded: Steps | None = None  # None: operations are carried out at once

    def record(self, body: Callable[[KernelBackend], None]) -> Program:
        """See KernelBackend.record."""
        recorder, recorded = copy(self), Steps()
        recorder._recorded = recorded
        recorder._launcher = RecordingLauncher(self._launcher, recorded)
        body(recorder)
        return Program(recorded, self._device)

    def _in_torch(self, call: Callable[[], object], *, capturable: bool = True) -> None:
        """An operation that torch carries out, now or when what is recorded runs."""
        if self._recorded is None:
            call()
        else:
            self._recorded.add(call, capturable=capturable)

    def pack(self, weight: Tensor) -> None:
        """See KernelBackend.pack: as it is stored."""

    def lookup(self, weight: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.lookup."""
        torch.index_select(weight, 0, index, out=out)

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
        return sparse.draw_columns(self._direct, draw)

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """See KernelBackend.apply.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        check_spans(x, out, len(staged), spans)
        linears = [own(variant) for variant in staged]
        kinds = {linear.kind for linear in linears}
        if len(kinds) > 1:
            names = sorted(kind.__name__ for kind in kinds)
            raise BadArgument(f"staged: expected one kind of delta, found {names}")
        sources = [linear.source for linear in linears]
        if any(source.parts for source in sources):
            self._in_torch(lambda: self._formulas.apply(x, out, sources, spans))
        for form in dict.fromkeys(form for linear in linears for form, _ in linear.parts):
            self._apply_form(form, x, out, linears, spans)

    def collect(self, shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
        """See KernelBackend.collect.

        Raises:
            BadArgument: a delta that does not fit its linear.
        """
        linears = [None if linear is None else own(linear) for linear in staged]
        return tuple(
            StagedDeltas(kind, tuple(of_kind))
            if form_of(kind) is None
            else collect(kind, shapes, of_kind)
            for kind, of_kind in by_kind(linears, lambda linear: linear.kind)
        )

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
            BadArgument: naming the argument that breaks the contract.
        """
        if isinstance(table, StagedTable):
            self._apply_formulas(x, out, table, place)
            return
        held, launcher = check_own("table", table, CudaTable), self._direct
        held.ask(place)
        self._in_torch(lambda: held.apply(launcher, x, out, place))
        if self._recorded is not None:
            self._recorded.watch(held.version)

    def _apply_formulas(self, x: Tensor, out: Tensor, table: StagedTable, place: int) -> None:
        """What has no kernels: the formulas look at spans on the host, which a graph cannot."""
        direct = self._unrecorded()
        self._in_torch(lambda: direct.apply(x, out, *table.of(place)), capturable=False)

    def _unrecorded(self) -> "CudaBackend":
        """The backend that carries operations out at once."""
        direct = copy(self)
        direct._launcher, direct._recorded = self._direct, None
        return direct

    def _apply_form(
        self,
        form: Form,
        x: Tensor,
        out: Tensor,
        linears: Sequence[CudaStaged],
        spans: Sequence[Span],
    ) -> None:
        work = work_list([linear.of(form) for linear in linears], spans)
        if len(work.segments) == 1:  # no span has a row
            return
        segments = work.segments.to(self._launcher.device)
        scratch = self._scratch(torch.float32, work.scratch)
        form.apply(self._launcher, x, out, work, segments, scratch)
        self._keep(linears)

    def _keep(self, value: object) -> None:
        """What launches reach through addresses lives as long as the program that holds them."""
        if self._recorded is not None:
            self._recorded.keep(value)

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """See KernelBackend.reconstruct.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        linear = own(staged)
        covered = sum(part.width - part.offset for _, part in linear.parts)
        if covered < len(base):
            self._in_torch(lambda: self._formulas.reconstruct(base, linear.source, out))
        for form, part in linear.parts:
            form.rebuild(self._launcher, base, part, out)
        self._keep(linear)

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """See KernelBackend.bias.

        Raises:
            BadArgument: fewer rows than the parts have.
        """
        biases = own(staged).biases
        if not biases:
            return None
        width = max(placed.offset + placed.rows for placed in biases)
        if rows < width:
            raise BadArgument(f"rows: expected at least {width}, found {rows}")
        total = torch.zeros(rows, device=self._launcher.device)
        for placed in biases:
            part = total[placed.offset : placed.offset + placed.rows]
            part += bias_values(placed.bias, placed.rows)
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
        chosen = [(0, len(x))] if spans is None else spans
        dense.check(x, weight, bias, out, chosen)
        self._in_torch(lambda: dense.linear(x, weight, bias, out, chosen))

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
        rebuilt = self._scratch(weight.dtype, weight.numel()).view(weight.shape)
        self.reconstruct(weight, staged, rebuilt)
        self.linear(x, rebuilt, bias, out, spans)

    def _scratch(self, dtype: torch.dtype, count: int) -> Tensor:
        """[count], for one operation: they follow each other, so all share one buffer per dtype."""
        room = self._scratches.get(dtype)
        if room is None or len(room) < count:
            room = torch.empty(count, dtype=dtype, device=self._launcher.device)
            self._scratches[dtype] = room
        return room[:count]

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
        elementwise.rms_norm(self._launcher, x, weight, index, eps, out, add)

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """See KernelBackend.rotate.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        elementwise.rotate(self._launcher, x, cos_sin)

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """See KernelBackend.gate.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        elementwise.gate(self._launcher, gate_up, activation, out)

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.gather.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        elementwise.gather(self._launcher, x, index, out)

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """See KernelBackend.write_kv.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        if attention.fits(cache):
            attention.write_kv(self._launcher, k, v, cache, where)
        else:
            self._in_torch(lambda: self._formulas.write_kv(k, v, cache, where))

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
        if not attention.fits(cache):
            formula = self._formulas.paged_attention  # it reads lengths on the host
            self._in_torch(lambda: formula(q, cache, where, scale, window, out), capturable=False)
            return
        # Not recorded launch by launch: each layer's scratch memory would be kept.
        launcher = self._direct
        self._in_torch(
            lambda: attention.paged_attention(launcher, q, cache, where, scale, window, out)
        )

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        return sampling.sample(self._launcher, logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs.

        Raises:
            BadArgument: naming the argument that breaks the contract.
        """
        return sampling.logprobs(self._launcher, logits, rows, token_ids, width)
