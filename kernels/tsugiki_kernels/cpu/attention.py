"""Calls into src/attention.cpp: argument checks and the C structs of one call.

Owns: the mirror of src/attention.h. Knows nothing of the arithmetic.
"""

import ctypes

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_strided
from tsugiki_kernels.cpu.parts import DTYPES
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import AttentionBatch

_I64, _I32, _F32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


class Attention(ctypes.Structure):
    """src/attention.h: Attention."""

    _fields_ = (
        ("q", _PTR),
        ("q_row_stride", _I64),
        ("q_head_stride", _I64),
        ("cache", _PTR),
        ("side", _I64),
        ("out", _PTR),
        ("out_row_stride", _I64),
        ("out_head_stride", _I64),
        ("query_start", _PTR),
        ("context", _PTR),
        ("block_tables", _PTR),
        ("table_stride", _I64),
        ("sequences", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("dim", _I64),
        ("block_size", _I64),
        ("window", _I64),
        ("dtype", _I32),
        ("threads", _I32),
        ("scale", _F32),
        ("unused", _I32),
    )


class KeyValueRows(ctypes.Structure):
    """src/attention.h: KeyValueRows."""

    _fields_ = (
        ("k", _PTR),
        ("v", _PTR),
        ("k_row_stride", _I64),
        ("k_head_stride", _I64),
        ("v_row_stride", _I64),
        ("v_head_stride", _I64),
        ("cache", _PTR),
        ("side", _I64),
        ("slots", _PTR),
        ("rows", _I64),
        ("kv_heads", _I64),
        ("dim", _I64),
        ("block_size", _I64),
        ("dtype", _I32),
        ("unused", _I32),
    )


def write_kv(k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch) -> Operation:
    """See KernelBackend.write_kv.

    Raises:
        BadArgument: a tensor of the wrong dtype, shape or strides, or a slot outside the cache.
    """
    _check_cache(cache, where.block_size)
    rows, expected = k.shape[0], (k.shape[0], cache.shape[2], cache.shape[4])
    check_strided("k", k, (cache.dtype,), expected)
    check_strided("v", v, (cache.dtype,), expected)
    _check_index("slots", where.slots, torch.int64)
    if len(where.slots) != rows:
        raise BadArgument(f"slots: expected one per row ({rows}), found {len(where.slots)}")
    call = KeyValueRows(
        k.data_ptr(),
        v.data_ptr(),
        *k.stride()[:2],
        *v.stride()[:2],
        cache.data_ptr(),
        cache.stride(0),
        where.slots.data_ptr(),
        rows,
        cache.shape[2],
        cache.shape[4],
        where.block_size,
        DTYPES[cache.dtype],
    )
    refusal = f"slots: beyond the {cache.shape[1]} cache blocks"
    return Operation("tsugiki_write_kv", call, refusal, kept=(k, v, cache, where))


def paged_attention(
    q: Tensor, cache: Tensor, where: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> Operation:
    """See KernelBackend.paged_attention.

    Raises:
        BadArgument: a tensor of the wrong dtype, shape or strides, or a block outside the cache.
    """
    _check_cache(cache, where.block_size)
    check_strided("q", q, (cache.dtype,), (q.shape[0], q.shape[1], cache.shape[4]))
    check_strided("out", out, (cache.dtype,), q.shape)
    if q.shape[1] % cache.shape[2]:
        raise BadArgument(f"q: {q.shape[1]} heads do not divide over {cache.shape[2]} KV heads")
    if window is not None and window < 1:
        raise BadArgument(f"window: expected at least 1 or None, found {window}")
    for name in ("query_start", "context", "block_tables"):
        _check_index(name, getattr(where, name), torch.int32)
    call = Attention(
        q.data_ptr(),
        *q.stride()[:2],
        cache.data_ptr(),
        cache.stride(0),
        out.data_ptr(),
        *out.stride()[:2],
        where.query_start.data_ptr(),
        where.context.data_ptr(),
        where.block_tables.data_ptr(),
        where.block_tables.stride(0),
        len(where.context),
        q.shape[1],
        cache.shape[2],
        cache.shape[4],
        where.block_size,
        window or 0,
        DTYPES[q.dtype],
        torch.get_num_threads(),
        scale,
    )
    return Operation(
        "tsugiki_paged_attention",
        call,
        f"query_start, context, block_tables: beyond the {cache.shape[1]} cache blocks, or more "
        f"rows than context",
        kept=(q, cache, where, out),
    )


def _check_cache(cache: Tensor, block_size: int) -> None:
    if cache.dtype not in ACTIVATIONS:
        raise BadArgument(f"cache: expected float32, bfloat16 or float16, found {cache.dtype}")
    if cache.ndim != 5 or cache.shape[0] != 2 or cache.shape[3] != block_size:
        raise BadArgument(
            f"cache: expected [2, blocks, kv_heads, {block_size}, head_dim], "
            f"found {tuple(cache.shape)}"
        )
    if not cache.is_contiguous() or cache.device.type != "cpu":
        raise BadArgument(
            f"cache: expected a contiguous tensor on cpu, found strides {cache.stride()} "
            f"on {cache.device}"
        )


def _check_index(name: str, index: Tensor, dtype: torch.dtype) -> None:
    if index.dtype != dtype:
        raise BadArgument(f"{name}: expected {dtype}, found {index.dtype}")
    if not index.is_contiguous():
        raise BadArgument(f"{name}: expected a contiguous tensor, found strides {index.stride()}")
