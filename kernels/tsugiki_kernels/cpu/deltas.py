"""Calls that apply and rebuild deltas: argument checks and the C structs of one call.

Owns: which entry point serves which kind of delta. Knows nothing of the arithmetic, nor of how
deltas come to lie in memory (staging.py).
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_own, check_spans
from tsugiki_kernels.cpu.parts import DTYPES, RECORDS
from tsugiki_kernels.cpu.program import Operation, run
from tsugiki_kernels.cpu.records import AddBiases, Apply, Reconstruct
from tsugiki_kernels.cpu.staging import CpuStaged
from tsugiki_kernels.cpu.table import CpuTable
from tsugiki_kernels.deltas import (
    CodebookDelta,
    DenseDelta,
    LowRankDelta,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span, Staged

_APPLY = {
    SparseDelta: "tsugiki_sparse_apply",
    SignDelta: "tsugiki_sign_apply",
    DenseDelta: "tsugiki_dense_apply",
    LowRankDelta: "tsugiki_low_rank_apply",
    CodebookDelta: "tsugiki_codebook_apply",
    TensorTrainDelta: "tsugiki_tensor_train_apply",
}
_RECONSTRUCT = {
    SparseDelta: "tsugiki_sparse_reconstruct",
    SignDelta: "tsugiki_sign_reconstruct",
}


def apply(x: Tensor, out: Tensor, linears: Sequence[CpuStaged], spans: Sequence[Span]) -> Operation:
    """See KernelBackend.apply; spans are checked already.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    _check_step(x, out, linears)
    addresses = array("Q", [linear.address for linear in linears])
    flat = array("q", chain.from_iterable(spans))
    count = ctypes.c_int64(len(linears))
    where = addresses.buffer_info()[0], 1, flat.buffer_info()[0], ctypes.addressof(count)
    kept = (x, out, linears, addresses, flat, count)
    return Operation(_APPLY[linears[0].kind], Apply(*activations(x, out), *where), kept=kept)


def apply_table(x: Tensor, out: Tensor, table: CpuTable, place: int) -> Operation:
    """See KernelBackend.apply_table.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    shape = table.shape
    check_spans(x, out, 0, ())
    check_strides(x, out)
    outputs, inputs = shape.linears[place]
    if x.shape != (shape.rows, inputs) or out.shape != (shape.rows, outputs):
        raise BadArgument(
            f"x, out: linear {place} of a table of {shape.rows} rows is {(outputs, inputs)}, found "
            f"{tuple(x.shape)} and {tuple(out.shape)}"
        )
    where = table.linears(place), table.stride, table.spans, table.count
    return Operation(_APPLY[shape.kind], Apply(*activations(x, out), *where), kept=(x, out, table))


def activations(x: Tensor, out: Tensor) -> tuple[int, ...]:
    """The fields of src/step.h: Step."""
    strides = x.stride(0), out.stride(0)
    dtypes = DTYPES[x.dtype], DTYPES[out.dtype]
    threads, unused = torch.get_num_threads(), 0
    at = x.data_ptr(), strides[0], x.shape[1], out.data_ptr(), strides[1]
    return (*at, *dtypes, threads, unused)


def reconstruct(base: Tensor, linear: CpuStaged, out: Tensor) -> Operation:
    """See KernelBackend.reconstruct, of arguments that were checked, and a kind of delta that has
    kernels of its own."""
    call = Reconstruct(
        linear.address,
        base.data_ptr(),
        out.data_ptr(),
        len(base),
        linear.inputs,
        DTYPES[base.dtype],
        torch.get_num_threads(),
    )
    return Operation(_RECONSTRUCT[linear.kind], call, kept=(linear, base, out))


def own(staged: Staged) -> CpuStaged:
    """The staged value as this backend made it.

    Raises:
        BadArgument: the value was staged by another backend.
    """
    return check_own("staged", staged, CpuStaged)


def check_strides(x: Tensor, out: Tensor) -> None:
    for name, tensor in (("x", x), ("out", out)):
        if tensor.stride(1) != 1 or tensor.device.type != "cpu":
            raise BadArgument(
                f"{name}: expected unit stride in the last dimension on cpu, found strides "
                f"{tensor.stride()} on {tensor.device}"
            )


def _check_step(x: Tensor, out: Tensor, linears: Sequence[CpuStaged]) -> None:
    check_strides(x, out)
    inputs, outputs, kind = x.shape[1], out.shape[1], linears[0].kind
    for linear in linears:
        if linear.kind is not kind:
            raise BadArgument(
                f"staged: expected one kind of delta, found {kind.__name__} and "
                f"{linear.kind.__name__}"
            )
        if linear.inputs != inputs or linear.width > outputs:
            raise BadArgument(
                f"x, out: a delta of {linear.inputs} inputs and outputs up to {linear.width} does "
                f"not fit {tuple(x.shape)} and {tuple(out.shape)}"
            )


def check_staged(base: Tensor, linear: CpuStaged) -> None:
    """The delta fits this weight.

    Raises:
        BadArgument: it does not.
    """
    if base.ndim != 2 or base.shape[1] != linear.inputs or base.shape[0] < linear.width:
        raise BadArgument(
            f"base: expected [at least {linear.width}, {linear.inputs}], found {tuple(base.shape)}"
        )


def check_reconstruct(base: Tensor, out: Tensor, linear: CpuStaged) -> None:
    """What reconstruct demands.

    Raises:
        BadArgument: naming the argument.
    """
    check_staged(base, linear)
    if base.dtype not in ACTIVATIONS:
        raise BadArgument(f"base: expected float32, bfloat16 or float16, found {base.dtype}")
    if out.dtype != base.dtype or out.shape != base.shape:
        raise BadArgument(
            f"out: expected {base.dtype} {tuple(base.shape)} as base, found {out.dtype} "
            f"{tuple(out.shape)}"
        )
    if out.data_ptr() == base.data_ptr():
        raise BadArgument("out: may not be base itself")
    for name, tensor in (("base", base), ("out", out)):
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise BadArgument(f"{name}: expected a contiguous tensor on cpu")


def bias(library: ctypes.CDLL, linear: CpuStaged, rows: int) -> Tensor | None:
    """See KernelBackend.bias.

    Raises:
        BadArgument: fewer rows than the parts have.
    """
    if not linear.has_bias:
        return None
    if rows < linear.width:
        raise BadArgument(f"rows: expected at least {linear.width}, found {rows}")
    total = torch.zeros(rows)
    part_bytes = ctypes.sizeof(RECORDS[linear.kind])
    run(library, Operation("tsugiki_bias", AddBiases(linear.address, part_bytes, total.data_ptr())))
    return total
