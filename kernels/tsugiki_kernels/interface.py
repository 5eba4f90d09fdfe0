"""The operations every kernel backend offers, and the resident form of the weights they read.

Owns: the formulas, shapes and dtypes. Knows nothing of files, requests or schedulers.

Segments. `x` and `out` are row-major over the rows of one step. A *span* `(start, stop)` names the
rows of one variant; spans of one call never overlap. Rows outside every span are left untouched.

Placement. A base linear may be fused (q, k, v stacked into one weight). A delta belongs to one of
its parts: `Placed(offset, delta)` adds into output columns `offset : offset + delta.shape[0]`.

Weights. A dense weight [out, in] that `linear`, `linear_rebuilt`, `reconstruct` or `lookup` reads
is packed: put once, by `pack`, into the order that suits the backend, which nobody else knows. So
is what `reconstruct` writes.

Numbers. Activations are float32, bfloat16 or float16. Every contribution is accumulated in float32
and rounded to the dtype of `out` once, when it is added. The reduction order of a row depends only
on the weight, never on other rows, spans or chunk boundaries.

Errors. An operation whose arguments break this contract raises BadArgument, naming the argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.lattice import LatticeWeight
from tsugiki_kernels.operands import AttentionBatch, ColumnDraw, Draws, Logprobs

Span = tuple[int, int]
Shapes = tuple[tuple[int, int], ...]  # (fused out, in) of every linear of a model, in one order
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
Allocate = Callable[[int], Tensor]  # bytes -> uint8 [bytes] in host memory, aligned to 64


def empty_extent(nbytes: int) -> Tensor:
    """Memory of torch's own allocator, which aligns to 64."""
    return torch.empty(nbytes, dtype=torch.uint8)


class Staged(Protocol):
    """One variant's deltas of one linear, all of one kind, ready for a backend (opaque but for
    it)."""

    @property
    def kind(self) -> type[Delta]:
        """Of all its deltas."""


class Deltas(Protocol):
    """One variant's deltas of one kind in all linears of a model (otherwise opaque)."""

    @property
    def kind(self) -> type[Delta]:
        """Deltas of one kind share a table."""


class DeltaTable(Protocol):
    """Which variant changes which rows of a step: recorded operations read it at each run."""

    def fill(self, deltas: Sequence[Deltas], spans: Sequence[Span]) -> None:
        """Instead of what it held: one span for each of the deltas, which it keeps alive.

        Raises:
            BadArgument: another kind or model, more than it has room for, a span beyond its rows.
        """


@dataclass(frozen=True, slots=True)
class StagedLinears:
    """The linears of one variant in one extent of memory."""

    linears: tuple[Staged, ...]
    others: tuple[Tensor, ...]  # the other tensors, as they lie in the extent
    nbytes: int  # of the extent: whatever the kernels need but shared columns


class Program(Protocol):
    """Recorded operations; see KernelBackend.record."""

    def run(self) -> None:
        """Carry all of them out, in order, on what their tensors hold now.

        Raises:
            BadArgument: an operation refused what it found, and those after it did not run.
        """


class KernelBackend(Protocol):
    """All operations; `name` is what /health shows."""

    name: str

    def pack(self, weight: Tensor) -> None:
        """Pack a weight [out, in], contiguous, float32, bfloat16 or float16, in place."""

    def lookup(self, weight: Tensor, index: Tensor, out: Tensor) -> None:
        """out = the rows `index` (int64 [rows]) of a packed weight; out: contiguous [rows, in]."""

    def stage(self, parts: Sequence[Placed]) -> Staged:
        """`stage_all` of one linear."""
        return self.stage_all([parts]).linears[0]

    def stage_all(
        self,
        linears: Sequence[Sequence[Placed]],
        others: Sequence[Tensor] = (),
        allocate: Allocate = empty_extent,
    ) -> StagedLinears:
        """Prepare the linears of one variant for `apply`; the parts of each are of one kind.

        Everything they need but shared columns, and `others`, is copied into one extent from
        `allocate`, so nothing else need be kept. Called once per load, off the engine thread.
        """

    def draw_columns(self, draw: ColumnDraw) -> Tensor | None:
        """uint16 [tiles, kept], ascending in a tile; None: a backend that draws no faster than
        whoever asks. Releases the GIL."""

    def apply(
        self, x: Tensor, out: Tensor, staged: Sequence[Staged], spans: Sequence[Span]
    ) -> None:
        """out[a:b, offset:offset+n] += x[a:b] @ D^T + bias, for each (a, b), each placed D.

        x: [rows, in], out: [rows, fused out], of one dtype, but out may be float32; unit stride in
        the last dimension. All staged values of one call hold the same kind of delta.
        """

    def collect(self, shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
        """A variant's staged linears, None where it has none, as tables take them: one value for
        each kind among them."""

    def delta_table(
        self, kind: type[Delta], shapes: Shapes, rows: int, capacity: int
    ) -> DeltaTable:
        """An empty table for steps of so many rows and up to `capacity` spans."""

    def apply_table(self, x: Tensor, out: Tensor, table: DeltaTable, place: int) -> None:
        """`apply` in linear `place` of the model, of what the table holds when this is run."""

    def reconstruct(self, base: Tensor, staged: Staged, out: Tensor) -> None:
        """out = base + D over the whole fused weight ([fused out, in], dtype of base), no biases.

        out may not alias base.
        """

    def bias(self, staged: Staged, rows: int) -> Tensor | None:
        """The float32 [rows = fused out] bias of the staged parts, or None when they have none."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """out[a:b] = x[a:b] @ weight^T + bias for each span (None: all rows).

        x: [rows, in]; weight: [out, in], packed; out: [rows, out]; of one dtype, but out may be
        float32; unit stride in the last dimension of x and out. bias: [out], contiguous, of the
        dtype of x or float32. The bias is added before the one rounding. out may not overlap x.
        Processors with bfloat16 products (vdpbf16ps) take bfloat16 denormals for zero.
        """

    def linear_rebuilt(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        staged: Staged,
        out: Tensor,
        spans: Sequence[Span],
    ) -> None:
        """`reconstruct` and `linear` in one, to the bit: out[a:b] = x[a:b] @ (weight + D)^T + bias.

        For the long chunks of one variant. As `linear`; biases of `staged` are not added.
        """

    def rms_norm(
        self,
        x: Tensor,
        weight: Tensor,
        index: Tensor | None,
        eps: float,
        out: Tensor,
        add: Tensor | None = None,
    ) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight over the last dimension; x += add comes first.

        x, out: [rows, dim] or [rows, heads, dim], the same dtype; out may be x. add: [rows, heads *
        dim]; x keeps the sum. weight: [n, dim], a row of x takes weight[index[row]] (int64 [rows],
        trusted; None: weight[0]). A weight of the dtype of x multiplies what was normalised and
        rounded; a float32 weight beside 16-bit x multiplies before the one rounding (Gemma).
        """

    def rotate(self, x: Tensor, cos_sin: Tensor) -> None:
        """Rotary positions in place: x[i] cos[i] + x[(i + dim / 2) % dim] sin[i].

        x: [rows, heads, dim]; cos_sin: contiguous [2, rows, dim] of its dtype, the sine's first
        half negated.
        """

    def gate(self, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
        """out = activation(first half of gate_up's columns) * second half; out: [rows, width]."""

    def gather(self, x: Tensor, index: Tensor, out: Tensor) -> None:
        """out = x[index]; x: [any, width], index: int64 [rows], out: contiguous [rows, width]."""

    def record(self, body: Callable[["KernelBackend"], None]) -> Program:
        """The operations that `body` asks of the backend it is given, to be run later, repeatedly.

        `body` computes nothing itself: between its operations it may only look at shapes and take
        views. The tensors it names must stay where they are; their contents are read at each run.
        """

    def write_kv(self, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> None:
        """Store k, v [rows, kv_heads, head_dim] into cache[0], cache[1] at `where.slots`.

        cache: [2, blocks, kv_heads, block_size, head_dim], activation dtype. How the elements of
        a block lie is the backend's own affair: only its `paged_attention` reads them.
        """

    def paged_attention(
        self,
        q: Tensor,
        cache: Tensor,
        where: AttentionBatch,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """out = softmax(scale * q K^T + causal mask) V for every row.

        q, out: [rows, heads, head_dim]; head h reads KV head h // (heads // kv_heads). With a
        window w a row at position p sees positions p - w + 1 .. p. Softmax in float32.
        """

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """int64 [n]: the next token of each of `draws.rows`; -1: its largest logit is not finite.

        logits: [rows, vocabulary], unit stride in the last dimension; -inf is never chosen. With
        w = e^((logit - largest) / temperature): top_k keeps the k largest w, top_p of those the
        smallest set with so much of their sum, min_p those w >= min_p; equal ones stay or go
        together. Of what is kept, in the order of the vocabulary, the first token whose running
        sum exceeds point * total (inverse transform sampling). A row's token depends on that row.
        """

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """log softmax of logits[rows] (int64 [n]) at token_ids (int64 [n]) and at the `width`
        likeliest tokens."""


@runtime_checkable
class ReadsCodebooks(Protocol):
    """What a backend offers beside KernelBackend when it can serve a sketched base."""

    def linear_codebooks(
        self,
        x: Tensor,
        weight: CodebookWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """`KernelBackend.linear` with a weight that is looked up; x may be of any activation dtype.

        bias: [out], contiguous, of the dtype of x or float32.
        """


@runtime_checkable
class ReadsLattices(Protocol):
    """What a backend offers beside KernelBackend when it can serve a base on a lattice."""

    def linear_lattice(
        self,
        x: Tensor,
        weight: LatticeWeight,
        bias: Tensor | None,
        out: Tensor,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """`KernelBackend.linear` with a weight of lattice codes: out = (x U) v^T * scales + bias.

        The rotation of x (tsugiki_kernels/hadamard.py) is part of the operation; it is computed in
        float32 and not rounded. x may be of any activation dtype; bias: [out], contiguous, of the
        dtype of x or float32.
        """
