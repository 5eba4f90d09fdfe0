"""Calls into src/linear.cpp and src/linear_rebuilt.cpp: argument checks and the C structs.

Owns: the mirror of their structs. Knows nothing of the arithmetic.
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from tsugiki_kernels.check import check_linear, check_on_cpu
from tsugiki_kernels.cpu.parts import DTYPES
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import Fields
from tsugiki_kernels.cpu.staging import CpuStaged
from tsugiki_kernels.deltas import SignDelta, SparseDelta
from tsugiki_kernels.interface import Span

_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


class Linear(ctypes.Structure):
    """src/linear.h: Linear."""

    _fields_: ClassVar[Fields] = (
        ("x", _PTR),
        ("x_stride", _I64),
        ("weight", _PTR),
        ("bias", _PTR),
        ("out", _PTR),
        ("out_stride", _I64),
        ("spans", _PTR),
        ("span_count", _I64),
        ("inputs", _I64),
        ("outputs", _I64),
        ("dtype", _I32),
        ("bias_dtype", _I32),
        ("out_dtype", _I32),
        ("threads", _I32),
    )


class RebuiltLinear(ctypes.Structure):
    """src/linear_rebuilt.cpp: RebuiltLinear."""

    _fields_: ClassVar[Fields] = (("linear", Linear), ("delta", _PTR))


class ChangedLinear(ctypes.Structure):
    """src/linear_changed.cpp: ChangedLinear."""

    _fields_: ClassVar[Fields] = (("linear", Linear), ("deltas", _PTR))


_REBUILT = {SparseDelta: "tsugiki_sparse_linear", SignDelta: "tsugiki_sign_linear"}


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, spans: Sequence[Span] | None
) -> Operation:
    """See KernelBackend.linear.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    call, kept = _call(x, weight, bias, out, [(0, x.shape[0])] if spans is None else spans)
    return Operation(_LINEAR, call, kept=kept)


def linear_rebuilt(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    delta: CpuStaged,
    out: Tensor,
    spans: Sequence[Span],
) -> Operation:
    """See KernelBackend.linear_rebuilt; the delta fits the weight and is of a kind in _REBUILT.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    call, kept = _call(x, weight, bias, out, spans)
    return Operation(_REBUILT[delta.kind], RebuiltLinear(call, delta.address), kept=(*kept, delta))


_LINEAR = "tsugiki_linear"
_CHANGED = {
    "tsugiki_sparse_apply": "tsugiki_linear_sparse",
    "tsugiki_low_rank_apply": "tsugiki_linear_low_rank",
}


def changed(dense: Operation, delta: Operation) -> Operation | None:
    """A linear and the deltas that are added to its output next, as one operation with the same
    bits; None: the second does not follow the first in this way."""
    function = _CHANGED.get(delta.function)
    if function is None or dense.function != _LINEAR:
        return None
    linear, deltas = dense.arguments, delta.arguments
    if (linear.out, linear.out_stride) != (deltas.out, deltas.out_stride):
        return None
    both = ChangedLinear(linear, ctypes.addressof(deltas))
    return Operation(function, both, kept=(dense.kept, delta.kept, deltas))


def _call(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, spans: Sequence[Span]
) -> tuple[Linear, tuple[object, ...]]:
    """The struct, and what it points to."""
    check_linear(x, weight, bias, out, spans)
    check_on_cpu(x=x, weight=weight, out=out)
    flat = array("q", chain.from_iterable(spans))
    call = Linear(
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        flat.buffer_info()[0],
        len(spans),
        weight.shape[1],
        weight.shape[0],
        DTYPES[x.dtype],
        DTYPES[x.dtype if bias is None else bias.dtype],
        DTYPES[out.dtype],
        torch.get_num_threads(),
    )
    return call, (x, weight, bias, out, flat)
