"""What each delta means, and attention, in plain torch, written to be read.

Owns: the formulas of the reference. Arithmetic is float32. Knows nothing of backends.
"""

from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from tsugiki_kernels.codebooks import looked_up
from tsugiki_kernels.deltas import (
    Bias,
    CodebookDelta,
    CodedBias,
    Delta,
    DenseDelta,
    LowRankDelta,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)

ROWS_AT_ONCE = 64  # bounds the gathered copy of x: [rows, tiles, kept] float32


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
        case CodebookDelta():
            return looked_up(delta.index, codebook_values(delta))
        case TensorTrainDelta():
            return train_product(
                torch.eye(delta.shape[1], device=delta.cores.device), delta
            ).T + sparse_entries(delta)


def train_product(x: Tensor, delta: TensorTrainDelta) -> Tensor:
    """x T^T as float32 [rows, out], T being what the stages stand for."""
    if not delta.stages:
        return torch.zeros(len(x), delta.shape[0], device=x.device)
    sizes = [stage.outputs * stage.inputs for stage in delta.stages]
    for stage, core in zip(delta.stages, torch.split(delta.cores.float(), sizes), strict=True):
        states = x.reshape(len(x), stage.outer, stage.inputs, stage.inner)
        x = core.view(stage.outputs, stage.inputs) @ states
    return x.reshape(len(x), -1)


def sparse_entries(delta: TensorTrainDelta) -> Tensor:
    """E as float32 [out, in]."""
    rows, columns = delta.shape
    counts = delta.row_start.diff().long()
    row = torch.arange(rows, device=counts.device).repeat_interleave(counts)
    step = times_gain(delta.step, delta.gain)[row // delta.rows_per_step]
    dense = torch.zeros(rows, columns, device=counts.device)
    dense[row, delta.column.long()] = step * (delta.value.float() - delta.zero)
    return dense


def codebook_values(delta: CodebookDelta) -> Tensor:
    """float32 [out, groups, entries]: what is added to the base's codebooks."""
    if delta.step is None:
        return times_gain(delta.values, delta.gain)
    return delta.values.float() * times_gain(delta.step, delta.gain)[:, None, None]


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
        case DenseDelta() | CodebookDelta():
            return x @ dense_weight(delta).T
        case TensorTrainDelta():
            return train_product(x, delta) + x @ sparse_entries(delta).T


def _sparse_product(x: Tensor, delta: SparseDelta) -> Tensor:
    """Each tile meets only its kept columns of x: a small dense product per tile."""
    gathered = x[:, delta.columns.long()]  # [rows, tiles, kept]
    tile_sums = torch.einsum("ntk,tkr->ntr", gathered, sparse_values(delta))
    return tile_sums.flatten(1)[:, : delta.shape[0]] * row_steps(delta)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """`KernelBackend.paged_attention` of one sequence; float32, in the shape of q.

    q: [rows, heads, dim], its newest rows; k, v: [context, kv_heads, dim], all of them.
    """
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
