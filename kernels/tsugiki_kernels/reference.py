"""The oracle: every operation in plain torch, on any device, written to be read.

Owns: the meaning of each delta as a formula. Knows nothing of speed; other backends are tested
against it. Arithmetic is float32 with one rounding into `out`. Sums are torch's own, so values are
equal across row layouts to float32 rounding, not bit by bit as in the compiled backends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki_kernels import sampling
from tsugiki_kernels.check import check_linear, check_parts, check_spans
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import Extent
from tsugiki_kernels.interface import (
    Activation,
    Allocate,
    AttentionBatch,
    Bias,
    CodedBias,
    ColumnDraw,
    Delta,
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

ACTIVATION_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
ROWS_AT_ONCE = 64  # bounds the gathered copy of x: [rows, tiles, kept] float32


@dataclass(frozen=True, slots=True)
class StagedParts:
    """The parts of one linear, their tensors in an extent."""

    parts: tuple[Placed, ...]


def own_tensors(delta: Delta) -> dict[str, Tensor]:
    """A delta's tensors by the name of their field, but for columns, which deltas share."""
    found: dict[str, Tensor] = {}
    for field in fields(delta):
        value = getattr(delta, field.name)
        if isinstance(value, CodedBias):
            value = value.codes
        if isinstance(value, Tensor) and field.name != "columns":
            found[field.name] = value
    return found


def with_tensors(delta: Delta, tensors: Mapping[str, Tensor]) -> Delta:
    """The delta with other tensors in the fields that `own_tensors` names."""
    changes: dict[str, Bias] = dict(tensors)
    if isinstance(delta.bias, CodedBias):
        changes["bias"] = replace(delta.bias, codes=tensors["bias"])
    return replace(delta, **changes)  # type: ignore[arg-type]


def unpack_codes(codes: Tensor, bits: int, count: int) -> Tensor:
    """uint8 [tiles, bytes] -> float32 [tiles, count]: `count` fields of `bits`, LSB first."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8)
    values = (codes.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return values.flatten(1)[:, :count].float()


def times_gain(values: Tensor, gain: float) -> Tensor:
    """float32, rounded once."""
    return values.float() * torch.tensor(gain, dtype=torch.float32)


def bias_values(bias: Bias, rows: int) -> Tensor:
    """float32 [rows]."""
    if isinstance(bias, Tensor):
        return bias
    place = torch.arange(rows, device=bias.codes.device) * bias.bits
    padded = torch.nn.functional.pad(bias.codes, (0, 1)).int()  # a code may straddle two bytes
    word = padded[place // 8] | padded[place // 8 + 1] << 8
    code = (word >> (place % 8)) & ((1 << bias.bits) - 1)
    return times_gain(code - (1 << (bias.bits - 1)), bias.scale)


def unpack_signs(delta: SignDelta) -> Tensor:
    """float32 [out, in] of +1 and -1."""
    return 2.0 * unpack_codes(delta.signs, 1, delta.shape[1]) - 1.0


def sparse_values(delta: SparseDelta) -> Tensor:
    """float32 [tiles, kept, rows_per_mask]: code - zero, before the row's step is applied."""
    tiles, kept = delta.columns.shape
    codes = unpack_codes(delta.codes, delta.bits, kept * delta.rows_per_mask)
    return codes.view(tiles, kept, delta.rows_per_mask) - delta.zero


def row_steps(delta: SparseDelta) -> Tensor:
    """float32 [out]: the quantization step of each row, gain included."""
    step = times_gain(delta.step, delta.gain)
    return step.repeat_interleave(delta.rows_per_step)[: delta.shape[0]]


def dense_weight(delta: Delta) -> Tensor:
    """D as float32 [out, in]."""
    match delta:
        case SparseDelta():
            return _dense_sparse(delta)
        case LowRankDelta():
            return delta.scale * (delta.b.float() @ delta.a.float())
        case SignDelta():
            return times_gain(delta.scale, delta.gain)[:, None] * unpack_signs(delta)
        case DenseDelta(weight=Tensor() as weight):
            return weight.float()
        case DenseDelta():
            return torch.zeros(delta.shape)


def _dense_sparse(delta: SparseDelta) -> Tensor:
    rows, columns = delta.shape
    tiles, kept = delta.columns.shape
    tile_rows = torch.zeros(tiles, delta.rows_per_mask, columns, device=delta.columns.device)
    where = delta.columns.long()[:, None, :].expand(tiles, delta.rows_per_mask, kept)
    tile_rows.scatter_add_(2, where, sparse_values(delta).transpose(1, 2))
    return tile_rows.flatten(0, 1)[:rows] * row_steps(delta)[:, None]


def product(x: Tensor, delta: Delta) -> Tensor:
    """x D^T as float32 [rows, out], for x float32 [rows, in]; biases apart."""
    match delta:
        case SparseDelta():
            chunks = torch.split(x, ROWS_AT_ONCE)
            return torch.cat([_sparse_product(chunk, delta) for chunk in chunks])
        case LowRankDelta():
            return delta.scale * (x @ delta.a.float().T @ delta.b.float().T)
        case SignDelta():
            return (x @ unpack_signs(delta).T) * times_gain(delta.scale, delta.gain)
        case DenseDelta():
            return x @ dense_weight(delta).T


def _sparse_product(x: Tensor, delta: SparseDelta) -> Tensor:
    """Each tile meets only its kept columns of x: a small dense product per tile."""
    gathered = x[:, delta.columns.long()]  # [rows, tiles, kept]
    tile_sums = torch.einsum("ntk,tkr->ntr", gathered, sparse_values(delta))
    return tile_sums.flatten(1)[:, : delta.shape[0]] * row_steps(delta)


@dataclass(frozen=True, slots=True)
class Repeated:
    """A program whose every run does again what was asked."""

    run: Callable[[], None]


class ReferenceBackend:
    """All operations in plain torch."""

    name = "reference"

    def stage(self, parts: Sequence[Placed]) -> Staged:
        """See KernelBackend.stage.

        Raises:
            BadArgument: see check_parts.
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
            out[rows] = _attend(q[rows], k, v, scale, window).to(q.dtype)

    def sample(self, logits: Tensor, draws: Draws) -> Tensor:
        """See KernelBackend.sample."""
        return sampling.sample(logits, draws)

    def logprobs(self, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int) -> Logprobs:
        """See KernelBackend.logprobs."""
        return sampling.logprobs(logits, rows, token_ids, width)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """q [rows, heads, dim], newest of k, v [context, kv_heads, dim] -> float32 like q."""
    rows, heads, dim = q.shape
    context, kv_heads, _ = k.shape
    grouped = q.float().view(rows, kv_heads, heads // kv_heads, dim)
    scores = scale * torch.einsum("rkgd,ckd->kgrc", grouped, k.float())
    key = torch.arange(context, device=q.device)
    position = key[context - rows :, None]
    hidden = key > position
    if window is not None:
        hidden |= key <= position - window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("kgrc,ckd->rkgd", weights, v.float()).reshape(rows, heads, dim)


def _moved(placed: Placed, extent: Extent) -> Placed:
    tensors = own_tensors(placed.delta)
    moved = {name: extent.moved(tensor) for name, tensor in tensors.items()}
    return replace(placed, delta=with_tensors(placed.delta, moved))


def own(staged: Staged) -> StagedParts:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    if not isinstance(staged, StagedParts):
        raise BadArgument(f"staged: made by another backend ({type(staged).__name__})")
    return staged
