"""What every backend demands of an operation's arguments.

Owns: dtypes, shapes and ranges that interface.py promises; those of deltas are in check_deltas.py,
of compressed weights in check_weights.py. Kernels trust what passed here: an index out of range
would otherwise be a read outside the tensor.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span
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
