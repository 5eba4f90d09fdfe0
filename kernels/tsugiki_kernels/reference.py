"""The oracle: every operation in plain torch, on any device, written to be read.

Owns: the backend that computes formulas.py. Knows nothing of speed; other backends are tested
against it. Arithmetic is float32 with one rounding into `out`. Sums are torch's own, so values are
equal across row layouts to float32 rounding, not bit by bit as in the compiled backends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki_kernels import sampling
from tsugiki_kernels.check import check_linear, check_own, check_spans
from tsugiki_kernels.check_deltas import check_parts
from tsugiki_kernels.check_weights import check_codebook_weight, check_lattice_weight
from tsugiki_kernels.codebooks import CodebookWeight, looked_up
from tsugiki_kernels.delta_table import StagedDeltas, StagedTable, TableShape, by_kind
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.formulas import (
    attend,
    bias_values,
    dense_weight,
    own_tensors,
    product,
    with_tensors,
)
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
from tsugiki_kernels.lattice import LatticeWeight, decoded
from tsugiki_kernels.operands import AttentionBatch, ColumnDraw, Draws, Logprobs

ACTIVATION_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, slots=True)
class StagedParts:
    """The parts of one linear, their tensors in an extent."""

    parts: tuple[Placed, ...]

    @property
    def kind(self) -> type[Delta]:
        """Of all the parts."""
        return type(self.parts[0].delta)


@dataclass(frozen=True, slots=True)
class Repeated:
    """A program whose every run does again what was asked."""

    run: Callable[[], None]


class ReferenceBackend(KernelBackend):
    """All operations in plain torch."""

    name = "reference"

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
        """See KernelBackend.stage_all.

        Raises:
            BadArgument: see check_parts and Extent.
        """
        for parts in linears:
            check_parts(parts)
        deltas = (placed.delta for parts in linears for placed in parts)
        own = chain.from_iterable(own_tensors(delta).values() for delta in deltas)
        extent = Extent(chain(own, others), 0, allocate)
        staged = tuple(StagedParts(tuple(_moved(p, extent) for p in parts)) for parts in linears)
        return StagedLinears(staged, tuple(map(extent.moved, others)), extent.nbytes)

    def draw_columns(self, draw: ColumnDraw) -> None:
        """See KernelBackend.draw_columns: codecs/masks.py is the reference."""

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """See KernelBackend.apply."""
        check_spans(x, out, len(staged), spans)
        for variant, (start, stop) in zip(staged, spans, strict=True):
            rows = x[start:stop].float()
            for placed in own(variant).parts if start < stop else ():
                self._add(rows, out[start:stop], placed)

    def collect(self, shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
        """See KernelBackend.collect."""
        return tuple(StagedDeltas(kind, tuple(linears)) for kind, linears in by_kind(staged, own))

    def delta_table(
        self, kind: type[Delta], shapes: Shapes, rows: int, capacity: int
    ) -> DeltaTable:
        """See KernelBackend.delta_table."""
        return StagedTable(TableShape(kind, shapes, rows, capacity))

    def apply_table(self, x: Tensor, out: Tensor, table: DeltaTable, place: int) -> None:
        """See KernelBackend.apply_table."""
        self.apply(x, out, *check_own("table", table, StagedTable).of(place))

    def _add(self, rows: Tensor, out: Tensor, placed: Placed) -> None:
        delta = placed.delta
        target = out[:, placed.offset : placed.offset + delta.shape[0]]
        change = product(rows, delta)
        if delta.bias is not None:
            change = change + bias_values(delta.bias, delta.shape[0])
        target.copy_(target.float() + change)

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """See KernelBackend.reconstruct."""
        out.copy_(base)
        for placed in own(staged).parts:
            rows = slice(placed.offset, placed.offset + placed.delta.shape[0])
            out[rows] = (base[rows].float() + dense_weight(placed.delta)).to(out.dtype)

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """See KernelBackend.bias."""
        total: Tensor | None = None
        for placed in own(staged).parts:
            if placed.delta.bias is not None:
                bias = bias_values(placed.delta.bias, placed.delta.shape[0])
                total = torch.zeros(rows, device=bias.device) if total is None else total
                total[placed.offset : placed.offset + len(bias)] += bias
        return total

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See KernelBackend.linear."""
        spans = [(0, len(x))] if spans is None else spans
        check_linear(x, weight, bias, out, spans)
        for start, stop in spans:
            product = F.linear(x[start:stop].float(), weight.float())
            out[start:stop] = product if bias is None else product + bias.float()

    def linear_codebooks(
        self,
        x: Tensor,
        weight: CodebookWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsCodebooks.linear_codebooks."""
        spans = [(0, len(x))] if spans is None else spans
        check_codebook_weight(weight)
        check_spans(x, out, len(spans), spans)
        dense = looked_up(weight.index, weight.codebooks)
        for start, stop in spans:
            product = F.linear(x[start:stop].float(), dense)
            out[start:stop] = product if bias is None else product + bias.float()

    def linear_lattice(
        self,
        x: Tensor,
        weight: LatticeWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """See ReadsLattices.linear_lattice."""
        spans = [(0, len(x))] if spans is None else spans
        check_lattice_weight(weight)
        check_spans(x, out, len(spans), spans)
        values = decoded(weight)
        for start, stop in spans:
            product = F.linear(weight.rotation.apply(x[start:stop]), values)
            out[start:stop] = product if bias is None else product + bias.float()

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
        check_linear(x, weight, bias, out, spans)
        rebuilt = torch.empty_like(weight)
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
        if add is not None:
            x += add.view(x.shape)
        rows = weight[0] if index is None else weight[index]
        if x.ndim == 3 and index is not None:
            rows = rows.unsqueeze(1)
        kept = x if weight.dtype == x.dtype else x.float()
        out.copy_(F.rms_norm(kept, (x.shape[-1],), None, eps) * rows)

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """See KernelBackend.rotate."""
        cos, sin = cos_sin.float().unsqueeze(2)
        rotated = torch.roll(x.float(), x.shape[-1] // 2, dims=-1)
        x.copy_(x.float() * cos + rotated * sin)

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """See KernelBackend.gate."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        out.copy_(ACTIVATION_FUNCTIONS[activation](gate) * up)

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """See KernelBackend.gather."""
        torch.index_select(x, 0, index, out=out)

    def record(self, body: Callable[[KernelBackend], None]) -> "Repeated":
        """See KernelBackend.record."""
        return Repeated(partial(body, self))

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """See KernelBackend.write_kv."""
        block, place = where.slots // where.block_size, where.slots % where.block_size
        cache[0, block, :, place] = k
        cache[1, block, :, place] = v

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
        starts = where.query_start.tolist()
        for s, context in enumerate(where.context.tolist()):
            rows = slice(starts[s], starts[s + 1])
            blocks = where.block_tables[s, : -(-context // where.block_size)].long()
            k, v = (side[blocks].transpose(1, 2).flatten(0, 1)[:context] for side in cache)
            out[rows] = attend(q[rows], k, v, scale, window).to(q.dtype)

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample."""
        return sampling.sample(logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs."""
        return sampling.logprobs(logits, rows, token_ids, width)


def _moved(placed: Placed, extent: Extent) -> Placed:
    tensors = own_tensors(placed.delta)
    moved = {name: extent.moved(tensor) for name, tensor in tensors.items()}
    return replace(placed, delta=with_tensors(placed.delta, moved))


def own(staged: Staged) -> StagedParts:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    return check_own("staged", staged, StagedParts)
