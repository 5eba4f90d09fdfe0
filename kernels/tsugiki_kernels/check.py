"""What every backend demands of its arguments, checked once when a linear is staged or applied.

Owns: dtypes, shapes and ranges that interface.py promises. Kernels trust what passed here: an index
out of range would otherwise be a read outside the tensor.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsugiki_kernels.codebooks import INDEX_BITS, CodebookWeight, IndexMap
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
from tsugiki_kernels.interface import Span
from tsugiki_kernels.lattice import GROUP, LATTICE_BITS, RESIDUAL_DTYPE, LatticeWeight
from tsugiki_kernels.operands import ColumnDraw

ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)
Own = TypeVar("Own")


def check_own(name: str, value: object, kind: type[Own]) -> Own:
    """An opaque value, as the backend that makes this kind of it made it.

    Raises:
        BadArgument: another backend made it.
    """
    if not isinstance(value, kind):
        raise BadArgument(f"{name}: made by another backend ({type(value).__name__})")
    return value


def check_tensor(
    name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: tuple[int, ...]
) -> None:
    """One of the dtypes, exactly this shape, contiguous.

    Raises:
        BadArgument: naming the tensor.
    """
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise BadArgument(f"{name}: expected dtype {expected}, found {tensor.dtype}")
    if tensor.shape != shape:
        raise BadArgument(f"{name}: expected shape {tuple(shape)}, found {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise BadArgument(f"{name}: expected a contiguous tensor, found strides {tensor.stride()}")


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


def check_index(index: IndexMap) -> None:
    """The map of a sketched linear.

    Raises:
        BadArgument: naming what does not fit.
    """
    rows, columns = index.shape
    if index.bits not in INDEX_BITS:
        raise BadArgument(f"bits: expected 2, 3 or 4, found {index.bits}")
    if index.groups < 1 or columns % index.groups:
        raise BadArgument(f"groups: expected a divisor of {columns} columns, found {index.groups}")
    check_tensor("codes", index.codes, (torch.uint8,), (rows, -(-columns * index.bits // 8)))


def check_codebook_weight(weight: CodebookWeight) -> None:
    """A sketched linear.

    Raises:
        BadArgument: naming what does not fit.
    """
    check_index(weight.index)
    check_tensor("codebooks", weight.codebooks, (torch.float16,), weight.index.codebook_shape)


def check_lattice_weight(weight: LatticeWeight) -> None:
    """A linear of lattice codes.

    Raises:
        BadArgument: naming what does not fit.
    """
    rows, columns = weight.shape
    if weight.bits not in LATTICE_BITS or columns % GROUP:
        raise BadArgument(f"a lattice of {weight.bits} bits with {columns} columns")
    groups = (rows, columns // GROUP)
    check_tensor("codes", weight.codes, (torch.int16,), groups)
    check_tensor("scales", weight.scales, (torch.bfloat16,), (rows,))
    if (weight.residual is None) != (weight.bits == 2):
        raise BadArgument(f"a lattice of {weight.bits} bits: residual is {weight.residual}")
    if weight.residual is not None:
        check_tensor("residual", weight.residual, (RESIDUAL_DTYPE[weight.bits],), groups)


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


def kept_columns(draw: ColumnDraw) -> int:
    """How many columns of each tile a draw keeps.

    Raises:
        BadArgument: groups from which more is to be kept than they have, or too many columns.
    """
    groups, rest = divmod(draw.columns, draw.group_size)
    kept_of_rest = draw.kept_of_rest if rest else 0
    fits = 0 < draw.kept <= draw.group_size and min(1, rest) <= kept_of_rest <= rest
    if not (fits and draw.columns <= 65536):
        raise BadArgument(f"draw: expected to keep some of each group, found {draw}")
    return groups * draw.kept + kept_of_rest


def check_spans(x: Tensor, out: Tensor, staged: int, spans: Sequence[Span]) -> None:
    """x and out belong together and every span lies within their rows.

    Raises:
        BadArgument: naming the argument.
    """
    if x.dtype not in ACTIVATIONS:
        raise BadArgument(f"x: expected float32, bfloat16 or float16, found {x.dtype}")
    if out.dtype not in (x.dtype, torch.float32):
        raise BadArgument(f"out: expected {x.dtype} as x has or float32, found {out.dtype}")
    if x.ndim != 2 or out.ndim != 2 or x.shape[0] != out.shape[0]:
        raise BadArgument(
            f"x, out: expected [rows, in] and [rows, out], found {tuple(x.shape)} and "
            f"{tuple(out.shape)}"
        )
    if len(spans) != staged:
        raise BadArgument(f"spans: expected one per staged value ({staged}), found {len(spans)}")
    _check_within(spans, x.shape[0])


def _check_within(spans: Sequence[Span], rows: int) -> None:
    for start, stop in spans:
        if not 0 <= start <= stop <= rows:
            raise BadArgument(f"spans: ({start}, {stop}) is not within the {rows} rows of x")


def check_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, spans: Sequence[Span]
) -> None:
    """The operands of a dense linear belong together and every span lies within their rows.

    Raises:
        BadArgument: naming the argument.
    """
    if weight.ndim != 2 or weight.dtype not in ACTIVATIONS:
        raise BadArgument(
            f"weight: expected [out, in] of float32, bfloat16 or float16, found {weight.dtype} "
            f"{tuple(weight.shape)}"
        )
    outputs, inputs = weight.shape
    rows = x.shape[0]
    check_tensor("weight", weight, (weight.dtype,), (outputs, inputs))
    check_strided("x", x, (weight.dtype,), (rows, inputs))
    check_strided("out", out, (weight.dtype, torch.float32), (rows, outputs))
    if bias is not None:
        check_tensor("bias", bias, (weight.dtype, torch.float32), (outputs,))
    _check_within(spans, rows)


def check_strided(
    name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], shape: tuple[int, ...]
) -> None:
    """One of the dtypes, exactly this shape, unit stride in the last dimension.

    Raises:
        BadArgument: naming the tensor.
    """
    if tensor.dtype not in dtypes:
        raise BadArgument(f"{name}: expected {dtypes[0]}, found {tensor.dtype}")
    if tensor.shape != shape:
        raise BadArgument(f"{name}: expected shape {tuple(shape)}, found {tuple(tensor.shape)}")
    if tensor.stride(-1) != 1:
        raise BadArgument(
            f"{name}: expected unit stride in the last dimension, found {tensor.stride()}"
        )


def check_column(name: str, column: Tensor, dtype: torch.dtype, length: int) -> None:
    """One value per row.

    Raises:
        BadArgument: naming the argument.
    """
    if column.dtype != dtype or column.shape != (length,) or not column.is_contiguous():
        expected = str(dtype).removeprefix("torch.")
        raise BadArgument(
            f"{name}: expected contiguous {expected} [{length}], found {column.dtype} "
            f"{tuple(column.shape)}"
        )


def check_on_cpu(**tensors: Tensor) -> None:
    """What C++ reads lies in host memory.

    Raises:
        BadArgument: naming the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise BadArgument(f"{name}: expected a tensor on cpu, found {tensor.device}")
