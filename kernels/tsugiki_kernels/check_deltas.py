"""What every backend demands of deltas, checked once when a linear is staged.

Owns: dtypes, shapes and ranges that deltas.py promises. Kernels trust what passed here.
"""

from collections.abc import Sequence

import torch

from tsugiki_kernels.check import ACTIVATIONS, check_tensor
from tsugiki_kernels.check_weights import check_index
from tsugiki_kernels.deltas import (
    MAX_STAGES,
    Bias,
    CodebookDelta,
    CodedBias,
    Delta,
    DenseDelta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)
from tsugiki_kernels.errors import BadArgument


def check_parts(parts: Sequence[Placed]) -> None:
    """The parts of one linear: one kind, one input width, disjoint outputs, each delta sound.

    Raises:
        BadArgument: naming what was found.
    """
    kinds = {type(placed.delta) for placed in parts}
    if len(kinds) != 1:
        names = sorted(kind.__name__ for kind in kinds)
        raise BadArgument(f"parts: expected deltas of one kind, found {names or 'none'}")
    widths = {placed.delta.shape[1] for placed in parts}
    if len(widths) != 1:
        raise BadArgument(f"parts: expected one input width, found {sorted(widths)}")
    taken = 0
    for placed in sorted(parts, key=lambda placed: placed.offset):
        if placed.offset < taken:
            raise BadArgument(f"parts: offset {placed.offset} overlaps outputs up to {taken}")
        check_delta(placed.delta)
        taken = placed.offset + placed.delta.shape[0]


def check_delta(delta: Delta) -> None:
    """Every tensor of the delta, and its bias.

    Raises:
        BadArgument: naming the tensor or option, what was found and what was expected.
    """
    match delta:
        case SparseDelta():
            _check_sparse(delta)
        case LowRankDelta():
            _check_low_rank(delta)
        case SignDelta():
            check_tensor("signs", delta.signs, (torch.uint8,), _sign_shape(delta))
            check_tensor("scale", delta.scale, (torch.float16,), (delta.shape[0],))
        case DenseDelta():
            if delta.weight is not None:
                check_tensor("weight", delta.weight, ACTIVATIONS, delta.shape)
        case CodebookDelta():
            _check_codebooks(delta)
        case TensorTrainDelta():
            _check_tensor_train(delta)
    _check_bias(delta.bias, delta.shape[0])


def _check_bias(bias: Bias | None, rows: int) -> None:
    if isinstance(bias, CodedBias):
        if not 2 <= bias.bits <= 8:
            raise BadArgument(f"bias: expected codes of 2 .. 8 bits, found {bias.bits}")
        check_tensor("bias", bias.codes, (torch.uint8,), (-(-rows * bias.bits // 8),))
    elif bias is not None:
        check_tensor("bias", bias, (torch.float32,), (rows,))


def _sign_shape(delta: SignDelta) -> tuple[int, int]:
    return (delta.shape[0], -(-delta.shape[1] // 8))


def _check_codebooks(delta: CodebookDelta) -> None:
    check_index(delta.index)
    dtype = torch.float16 if delta.step is None else torch.int8
    check_tensor("values", delta.values, (dtype,), delta.index.codebook_shape)
    if delta.step is not None:
        check_tensor("step", delta.step, (torch.float16,), (delta.shape[0],))


def _check_low_rank(delta: LowRankDelta) -> None:
    if delta.a.ndim != 2 or delta.b.ndim != 2:
        raise BadArgument(f"a, b: expected matrices, found {delta.a.ndim} and {delta.b.ndim} dims")
    check_tensor("a", delta.a, ACTIVATIONS, delta.a.shape)
    check_tensor("b", delta.b, (delta.a.dtype,), (len(delta.b), len(delta.a)))


def _check_sparse(delta: SparseDelta) -> None:
    rows, width = delta.shape
    if delta.bits not in (1, 2, 4, 8):
        raise BadArgument(f"bits: expected 1, 2, 4 or 8, found {delta.bits}")
    if delta.rows_per_mask < 1 or delta.rows_per_step < 1:
        raise BadArgument(
            f"rows_per_mask, rows_per_step: expected at least 1, found {delta.rows_per_mask}, "
            f"{delta.rows_per_step}"
        )
    if width > 65536:
        raise BadArgument(f"shape: columns are 16-bit, so at most 65536 inputs; found {width}")
    tiles, kept = -(-rows // delta.rows_per_mask), delta.columns.shape[-1]
    code_bytes = -(-kept * delta.rows_per_mask * delta.bits // 8)
    check_tensor("columns", delta.columns, (torch.uint16,), (tiles, kept))
    check_tensor("codes", delta.codes, (torch.uint8,), (tiles, code_bytes))
    check_tensor("step", delta.step, (torch.float16,), (-(-rows // delta.rows_per_step),))
    # What lies on a device was drawn there (KernelBackend.draw_columns), within its columns; a look
    # at it would be a copy back for every linear of every load.
    if delta.columns.is_cpu and delta.columns.numel():
        largest = int(delta.columns.numpy().max())
        if largest >= max(width, 1):
            raise BadArgument(f"columns: expected indices below {width}, found {largest}")


def _check_tensor_train(delta: TensorTrainDelta) -> None:
    rows, width = delta.shape
    if len(delta.stages) > MAX_STAGES or width > 65536 or delta.rows_per_step < 1:
        raise BadArgument(
            f"stages, shape, rows_per_step: expected at most {MAX_STAGES} stages, at most 65536 "
            f"inputs, a step for at least 1 row; found {len(delta.stages)}, {width}, "
            f"{delta.rows_per_step}"
        )
    state = width
    for stage in delta.stages:
        if min(stage) < 1 or stage.outer * stage.inputs * stage.inner != state:
            raise BadArgument(f"stages: {stage} does not fit a state of {state} elements")
        state = stage.outer * stage.outputs * stage.inner
    if delta.stages and state != rows:
        raise BadArgument(f"stages: expected {rows} outputs, found {state}")
    cores = sum(stage.outputs * stage.inputs for stage in delta.stages)
    check_tensor("cores", delta.cores, ACTIVATIONS, (cores,))
    check_tensor("row_start", delta.row_start, (torch.int32,), (rows + 1,))
    entries = len(delta.column)
    check_tensor("column", delta.column, (torch.uint16,), (entries,))
    check_tensor("value", delta.value, (torch.uint8, torch.float16), (entries,))
    check_tensor("step", delta.step, (torch.float16,), (-(-rows // delta.rows_per_step),))
    ends = int(delta.row_start[0]), int(delta.row_start[-1])
    if ends != (0, entries) or bool((delta.row_start.diff() < 0).any()):
        raise BadArgument(f"row_start: expected to ascend from 0 to {entries}, found {ends}")
    if entries and int(delta.column.int().max()) >= width:
        raise BadArgument(f"column: expected indices below {width}")
