"""Calls into src/elementwise.cpp: argument checks and the C structs of one call.

Owns: the mirror of its structs. Knows nothing of the arithmetic.
"""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_column, check_on_cpu, check_strided
from tsugiki_kernels.cpu.parts import DTYPES
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import Fields
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Activation

_I64, _I32, _F32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p

_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


class Norm(ctypes.Structure):
    """src/elementwise.cpp: Norm."""

    _fields_: ClassVar[Fields] = (
        ("x", _PTR),
        ("x_row_stride", _I64),
        ("x_head_stride", _I64),
        ("add", _PTR),
        ("add_row_stride", _I64),
        ("out", _PTR),
        ("out_row_stride", _I64),
        ("out_head_stride", _I64),
        ("weight", _PTR),
        ("weight_row", _PTR),
        ("rows", _I64),
        ("heads", _I64),
        ("dim", _I64),
        ("eps", _F32),
        ("dtype", _I32),
        ("weight_dtype", _I32),
        ("threads", _I32),
    )


class Rotation(ctypes.Structure):
    """src/elementwise.cpp: Rotation."""

    _fields_: ClassVar[Fields] = (
        ("x", _PTR),
        ("row_stride", _I64),
        ("head_stride", _I64),
        ("cos_sin", _PTR),
        ("rows", _I64),
        ("heads", _I64),
        ("dim", _I64),
        ("dtype", _I32),
        ("threads", _I32),
    )


class Gate(ctypes.Structure):
    """src/elementwise.cpp: Gate."""

    _fields_: ClassVar[Fields] = (
        ("gate_up", _PTR),
        ("gate_up_stride", _I64),
        ("out", _PTR),
        ("out_stride", _I64),
        ("rows", _I64),
        ("width", _I64),
        ("activation", _I32),
        ("dtype", _I32),
        ("threads", _I32),
        ("unused", _I32),
    )


class Gather(ctypes.Structure):
    """src/elementwise.cpp: Gather."""

    _fields_: ClassVar[Fields] = (
        ("x", _PTR),
        ("x_stride", _I64),
        ("index", _PTR),
        ("limit", _I64),
        ("out", _PTR),
        ("rows", _I64),
        ("width", _I64),
        ("dtype", _I32),
        ("unused", _I32),
    )


def rms_norm(
    x: Tensor, weight: Tensor, index: Tensor | None, eps: float, out: Tensor, add: Tensor | None
) -> Operation:
    """See KernelBackend.rms_norm.

    Raises:
        BadArgument: naming the tensor.
    """
    heads = x.shape[1] if x.ndim == 3 else 1
    rows, dim = x.shape[0], x.shape[-1]
    if index is not None:
        check_column("index", index, torch.int64, rows)
    _check("x", x, x.dtype, x.shape)
    _check("out", out, x.dtype, x.shape)
    _check("weight", weight, weight.dtype, (len(weight), dim))
    if add is not None:
        _check("add", add, x.dtype, (rows, heads * dim))
    call = Norm(
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        None if add is None else add.data_ptr(),
        0 if add is None else add.stride(0),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        weight.data_ptr(),
        None if index is None else index.data_ptr(),
        rows,
        heads,
        dim,
        eps,
        DTYPES[x.dtype],
        DTYPES[weight.dtype],
        torch.get_num_threads(),
    )
    return Operation("tsugiki_rms_norm", call, kept=(x, weight, index, out, add))


def rotate(x: Tensor, cos_sin: Tensor) -> Operation:
    """See KernelBackend.rotate.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, heads, dim = x.shape
    _check("x", x, x.dtype, x.shape)
    _check("cos_sin", cos_sin, x.dtype, (2, rows, dim))
    if not cos_sin.is_contiguous():
        raise BadArgument(f"cos_sin: expected contiguous, found strides {cos_sin.stride()}")
    call = Rotation(
        x.data_ptr(),
        *x.stride()[:2],
        cos_sin.data_ptr(),
        rows,
        heads,
        dim,
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return Operation("tsugiki_rotate", call, kept=(x, cos_sin))


def gate(gate_up: Tensor, activation: Activation, out: Tensor) -> Operation:
    """See KernelBackend.gate.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, width = out.shape
    _check("gate_up", gate_up, gate_up.dtype, (rows, 2 * width))
    _check("out", out, gate_up.dtype, out.shape)
    call = Gate(
        gate_up.data_ptr(),
        gate_up.stride(0),
        out.data_ptr(),
        out.stride(0),
        rows,
        width,
        _ACTIVATIONS[activation],
        DTYPES[out.dtype],
        torch.get_num_threads(),
    )
    return Operation("tsugiki_gate", call, kept=(gate_up, out))


def gather(x: Tensor, index: Tensor, out: Tensor) -> Operation:
    """See KernelBackend.gather.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, width = len(index), x.shape[1]
    check_column("index", index, torch.int64, rows)
    _check("x", x, x.dtype, x.shape)
    _check("out", out, x.dtype, (rows, width))
    if not out.is_contiguous():
        raise BadArgument(f"out: expected contiguous, found strides {out.stride()}")
    call = Gather(
        x.data_ptr(),
        x.stride(0),
        index.data_ptr(),
        len(x),
        out.data_ptr(),
        rows,
        width,
        DTYPES[x.dtype],
    )
    refusal = f"index: beyond the {len(x)} rows of x"
    return Operation("tsugiki_gather", call, refusal, kept=(x, index, out))


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if dtype not in ACTIVATIONS:
        raise BadArgument(f"{name}: expected float32, bfloat16 or float16, found {dtype}")
    check_strided(name, tensor, (dtype,), shape)
    check_on_cpu(**{name: tensor})
