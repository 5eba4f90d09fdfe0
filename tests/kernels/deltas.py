"""Random deltas of every kind, and the dense float64 formula that they must equal."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.deltas import (
    Bias,
    CodebookDelta,
    CodedBias,
    Delta,
    DenseDelta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
    Stage,
    TensorTrainDelta,
)
from tsugiki_kernels.interface import Span


def sparse(
    shape: tuple[int, int],
    seed: int,
    *,
    rows_per_mask: int = 16,
    rows_per_step: int = 1,
    bits: int = 4,
    kept: int = 9,
    bias: int | None = 6,
) -> SparseDelta:
    """A random sparse delta; the last tile is ragged when shape[0] does not divide. `bias`: the
    bits of its codes, 32 for float32 values, None for none."""
    g = torch.Generator().manual_seed(seed)
    out, inputs = shape
    tiles = -(-out // rows_per_mask)
    picks = [torch.randperm(inputs, generator=g)[:kept].sort().values for _ in range(tiles)]
    code_bytes = -(-kept * rows_per_mask * bits // 8)
    return SparseDelta(
        shape=shape,
        rows_per_mask=rows_per_mask,
        rows_per_step=rows_per_step,
        bits=bits,
        zero=((1 << bits) - 1) / 2,
        gain=0.3,
        columns=torch.stack(picks).to(torch.uint16),
        codes=torch.randint(0, 256, (tiles, code_bytes), generator=g, dtype=torch.uint8),
        step=(torch.rand(-(-out // rows_per_step), generator=g) * 3 / (1 << bits)).half(),
        bias=None if bias is None else random_bias(out, bias, g),
    )


def random_bias(out: int, bits: int, generator: torch.Generator) -> Bias:
    """Codes of `bits` bits, or float32 values for 32."""
    if bits == 32:
        return torch.randn(out, generator=generator)
    codes = torch.randint(0, 256, (-(-out * bits // 8),), generator=generator, dtype=torch.uint8)
    return CodedBias(codes, bits, 2.0 / (1 << bits))


def low_rank(shape: tuple[int, int], seed: int, rank: int = 5, bias: bool = False) -> LowRankDelta:
    g = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        a=torch.randn(rank, shape[1], generator=g) / shape[1] ** 0.5,
        b=torch.randn(shape[0], rank, generator=g),
        scale=0.75,
        bias=torch.randn(shape[0], generator=g) if bias else None,
    )


def sign(shape: tuple[int, int], seed: int) -> SignDelta:
    g = torch.Generator().manual_seed(seed)
    size = (shape[0], -(-shape[1] // 8))
    signs = torch.randint(0, 256, size, generator=g, dtype=torch.uint8)
    return SignDelta(shape, 0.7, signs, torch.rand(shape[0], generator=g).half(), None)


def dense(shape: tuple[int, int], seed: int, weight: bool = True) -> DenseDelta:
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=g) / shape[1] ** 0.5
    return DenseDelta(shape, matrix if weight else None, torch.randn(shape[0], generator=g))


def halves(length: int) -> tuple[int, int]:
    """Two factors of a length, the second the least above 1."""
    least = next(d for d in range(2, length + 1) if length % d == 0)
    return length // least, least


def tensor_train(
    shape: tuple[int, int], seed: int, *, rank: int = 3, coded: bool = False, entries: int = 3
) -> TensorTrainDelta:
    """Two cores (none where rank is 0) met from the right, and about so many entries a row."""
    g = torch.Generator().manual_seed(seed)
    (a1, a2), (b1, b2) = halves(shape[0]), halves(shape[1])
    stages = (Stage(b1, b2, rank * a2, 1), Stage(1, b1 * rank, a1, a2)) if rank else ()
    size = sum(stage.inputs * stage.outputs for stage in stages)
    counts = torch.randint(0, 2 * entries + 1, (shape[0],), generator=g) if entries else [0]
    rows = [torch.randperm(shape[1], generator=g)[:count].sort().values for count in counts]
    starts = torch.zeros(shape[0] + 1, dtype=torch.int32)
    if entries:
        starts[1:] = counts.cumsum(0)
    values = torch.randint(0, 256, (int(starts[-1]),), generator=g, dtype=torch.uint8)
    return TensorTrainDelta(
        shape=shape,
        stages=stages,
        cores=torch.randn(size, generator=g) / shape[1] ** 0.25,
        rows_per_step=5,
        zero=127.5 if coded else 0.0,
        gain=0.004 if coded else 0.5,
        row_start=starts,
        column=torch.cat(rows).to(torch.uint16),
        value=values if coded else torch.randn(len(values), generator=g).half(),
        step=torch.rand(-(-shape[0] // 5), generator=g).half(),
        bias=torch.randn(shape[0], generator=g) if coded else None,
    )


KINDS: dict[str, Callable[[tuple[int, int], int], Delta]] = {
    "sparse tiles 1 bit": lambda shape, seed: sparse(shape, seed, bits=1),
    "sparse tiles 2 bits": lambda shape, seed: sparse(shape, seed, bits=2, rows_per_step=4, bias=8),
    "sparse tiles 4 bits": lambda shape, seed: sparse(
        shape, seed, bits=4, rows_per_step=16, bias=3
    ),
    "sparse tiles 8 bits": lambda shape, seed: sparse(shape, seed, bits=8, rows_per_step=6),
    "sparse tiles of 32": lambda shape, seed: sparse(shape, seed, rows_per_mask=32, bits=1, bias=2),
    "sparse tiles of 48": lambda shape, seed: sparse(
        shape, seed, rows_per_mask=48, bits=2, bias=32
    ),
    "sparse rows 1 bit": lambda shape, seed: sparse(shape, seed, rows_per_mask=1, bits=1),
    "sparse rows 2 bits": lambda shape, seed: sparse(shape, seed, rows_per_mask=1, bits=2),
    "sparse rows 4 bits": lambda shape, seed: sparse(shape, seed, rows_per_mask=1, kept=16),
    "sparse rows 8 bits": lambda shape, seed: sparse(
        shape, seed, rows_per_mask=1, bits=8, kept=37, bias=None
    ),
    "sparse tiles of 3": lambda shape, seed: sparse(shape, seed, rows_per_mask=3, kept=21),
    "low rank": low_rank,
    "low rank 17": lambda shape, seed: low_rank(shape, seed, rank=17, bias=True),
    "sign": sign,
    "dense": dense,
    "tensor train": tensor_train,
    "tensor train, coded": lambda shape, seed: tensor_train(shape, seed, coded=True, entries=19),
    "tensor train alone": lambda shape, seed: tensor_train(shape, seed, entries=0),
    "sparse entries alone": lambda shape, seed: tensor_train(shape, seed, rank=0),
    "bias alone": lambda shape, seed: dense(shape, seed, weight=False),
}


def cast(delta: Delta, dtype: torch.dtype) -> Delta:
    """The delta with what is kept in the activation dtype in that dtype."""
    match delta:
        case LowRankDelta(a=a, b=b):
            return replace(delta, a=a.to(dtype), b=b.to(dtype))
        case DenseDelta(weight=Tensor() as weight):
            return replace(delta, weight=weight.to(dtype))
        case TensorTrainDelta(cores=cores):
            return replace(delta, cores=cores.to(dtype))
    return delta


def dense64(delta: Delta) -> Tensor:
    """D by the formulas of interface.py, element by element, in float64 [out, in]."""
    match delta:
        case SparseDelta():
            return _sparse64(delta)
        case LowRankDelta(a=a, b=b, scale=scale):
            return scale * (b.double() @ a.double())
        case SignDelta(shape=shape, signs=signs, scale=scale):
            column = torch.arange(shape[1])
            bit = (signs[:, column // 8] >> (column % 8).to(torch.uint8)) & 1
            rows = (scale.float() * torch.tensor(delta.gain)).double()
            return rows[:, None] * (bit.double() * 2 - 1)
        case DenseDelta(weight=weight, shape=shape):
            return torch.zeros(shape).double() if weight is None else weight.double()
        case TensorTrainDelta():
            return _train64(delta) + _entries64(delta)
        case CodebookDelta(index=index, values=values, gain=gain):
            steps = torch.ones(len(values)) if delta.step is None else delta.step.float()
            rows = (steps * torch.tensor(gain)).double()
            return looked_up64(index, values.double() * rows[:, None, None])
    raise TypeError(delta)


def looked_up64(of: IndexMap, entries: Tensor) -> Tensor:
    """float64 [out, in] of entries [out, groups, 2^bits], code by code."""
    rows, columns = of.shape
    width = columns // of.groups
    dense = torch.empty(rows, columns, dtype=torch.float64)
    for r in range(rows):
        number = int.from_bytes(bytes(of.codes[r].tolist()), "little")
        for c in range(columns):
            code = number >> (c * of.bits) & ((1 << of.bits) - 1)
            dense[r, c] = entries[r, c // width, code]
    return dense


def _train64(delta: TensorTrainDelta) -> Tensor:
    """Input by input through the stages."""
    state = torch.eye(delta.shape[1], dtype=torch.float64)
    if not delta.stages:
        return torch.zeros(delta.shape, dtype=torch.float64)
    at = 0
    for stage in delta.stages:
        size = stage.outputs * stage.inputs
        core = delta.cores[at : at + size].double().view(stage.outputs, stage.inputs)
        shape = (len(state), stage.outer, stage.inputs, stage.inner)
        state = torch.einsum("mk,npkq->npmq", core, state.reshape(shape))
        at += size
    return state.reshape(delta.shape[1], -1).T


def _entries64(delta: TensorTrainDelta) -> Tensor:
    dense = torch.zeros(delta.shape, dtype=torch.float64)
    for r in range(delta.shape[0]):
        step = delta.step[r // delta.rows_per_step].float() * torch.tensor(delta.gain)
        for i in range(int(delta.row_start[r]), int(delta.row_start[r + 1])):
            dense[r, int(delta.column[i])] = float(step) * (float(delta.value[i]) - delta.zero)
    return dense


def _sparse64(delta: SparseDelta) -> Tensor:
    dense = torch.zeros(delta.shape, dtype=torch.float64)
    tile_bits = [int.from_bytes(bytes(row.tolist()), "little") for row in delta.codes]
    for r in range(delta.shape[0]):
        tile, place = divmod(r, delta.rows_per_mask)
        for j, column in enumerate(delta.columns[tile].tolist()):
            shift = (j * delta.rows_per_mask + place) * delta.bits
            code = (tile_bits[tile] >> shift) & ((1 << delta.bits) - 1)
            step = delta.step[r // delta.rows_per_step].float() * torch.tensor(delta.gain)
            dense[r, column] += float(step) * (code - delta.zero)
    return dense


def bias64(bias: Bias, rows: int) -> Tensor:
    """The values of a bias in float64 [rows], code by code."""
    if isinstance(bias, Tensor):
        return bias.double()
    bits, half = bias.bits, 1 << (bias.bits - 1)
    number = int.from_bytes(bytes(bias.codes.tolist()), "little")
    codes = [(number >> (r * bits)) & ((1 << bits) - 1) for r in range(rows)]
    return (torch.tensor(bias.scale) * torch.tensor([float(c - half) for c in codes])).double()


def expected64(
    x: Tensor, out: Tensor, variants: Sequence[Sequence[Placed]], spans: Sequence[Span]
) -> Tensor:
    """What `apply` must leave in out, in float64."""
    result = out.double().clone()
    for parts, (start, stop) in zip(variants, spans, strict=True):
        for placed in parts:
            delta = placed.delta
            columns = slice(placed.offset, placed.offset + delta.shape[0])
            change = x[start:stop].double() @ dense64(delta).T
            if delta.bias is not None:
                change = change + bias64(delta.bias, delta.shape[0])
            result[start:stop, columns] += change
    return result


def close(found: Tensor, expected: Tensor, relative: float) -> bool:
    """Whether no value is further off than `relative` of the largest expected one (or of 1)."""
    worst = float((found.double() - expected).abs().max())
    return worst <= relative * max(1.0, float(expected.abs().max()))
