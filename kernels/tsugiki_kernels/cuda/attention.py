"""Paged attention on the GPU: argument checks, scratch memory and launches.

Owns: the mirror of src/attention.cuh. Contents of tensors on the device are trusted: nothing waits
for the GPU.

Bytes of a call in decode: keys and values of every context once per 16 / group rows of a sequence,
4 * (dim + 4) per row, head and 512 positions written and read between the two launches.
"""

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_strided, check_tensor
from tsugiki_kernels.cuda.arguments import DTYPE_NAMES
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Float32, Int32, Int64, Launcher
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import AttentionBatch

MULTIPLE = 8  # of head_dim and block_size: values that a lane loads at once
SPLIT = 512  # positions that are summed up on their own
STATE_PADDING = 4  # floats of a state beside its head_dim sums
PARTS = (64, 128)  # dimensions of the values that a warp adds up: one part, or parts of 128
MAX_DIM = 256  # two parts: what a state has room for


def fits(cache: Tensor) -> bool:
    """Whether kernels are made for blocks and heads of this size; others are for the formulas."""
    block_size, dim = cache.shape[3:]
    return block_size % MULTIPLE == 0 and dim % MULTIPLE == 0 and dim <= MAX_DIM


def write_kv(
    launcher: Launcher, k: Tensor, v: Tensor, cache: Tensor, where: AttentionBatch
) -> None:
    """See KernelBackend.write_kv.

    Raises:
        BadArgument: naming the tensor.
    """
    _check_cache(cache, where.block_size)
    rows, expected = len(k), (len(k), cache.shape[2], cache.shape[4])
    for name, tensor in (("k", k), ("v", v)):
        _check_heads(name, tensor, cache.dtype, expected)
    check_tensor("slots", where.slots, (torch.int64,), (rows,))
    if rows:
        start(
            launcher,
            f"tsugiki_write_kv_{DTYPE_NAMES[cache.dtype]}",
            (
                *(k, Int64(k.stride(0)), Int64(k.stride(1))),
                *(v, Int64(v.stride(0)), Int64(v.stride(1))),
                *(cache, Int64(cache.stride(0)), where.slots),
                *(Int32(cache.shape[2]), Int32(where.block_size), Int32(cache.shape[4])),
            ),
            rows=rows,
        )


def paged_attention(
    execution: Execution,
    q: Tensor,
    cache: Tensor,
    where: AttentionBatch,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """See KernelBackend.paged_attention. Rows beyond the last sequence are left as they are.

    Raises:
        BadArgument: naming the tensor.
    """
    _check_cache(cache, where.block_size)
    rows, heads = q.shape[:2]
    _check_heads("q", q, cache.dtype, (rows, heads, cache.shape[4]))
    check_strided("out", out, (cache.dtype,), q.shape)
    if heads % cache.shape[2]:
        raise BadArgument(f"q: {heads} heads do not divide over {cache.shape[2]} KV heads")
    if window is not None and window < 1:
        raise BadArgument(f"window: expected at least 1 or None, found {window}")
    _check_sequences(where)
    if not rows:
        return
    launcher = execution.launcher
    scratch = execution.scratch.take(torch.float32, _scratch_floats(q, where))
    _attend(launcher, q, cache, where, scale, window, scratch)
    _finish(launcher, q, cache, where, window, out, scratch)


def _scratch_floats(q: Tensor, where: AttentionBatch) -> int:
    """A state for each row and head, and for each sequence, head and split of the longest context
    that its table can hold: what the first launch writes and the second reads."""
    _, heads, dim = q.shape
    sequences, blocks = where.block_tables.shape
    splits = -(-blocks * where.block_size // SPLIT)
    return (len(q) + sequences * splits) * heads * (dim + STATE_PADDING)


def _attend(
    launcher: Launcher,
    q: Tensor,
    cache: Tensor,
    where: AttentionBatch,
    scale: float,
    window: int | None,
    scratch: Tensor,
) -> None:
    rows, heads, dim = q.shape
    start(
        launcher,
        f"tsugiki_attention_{DTYPE_NAMES[q.dtype]}_{PARTS[dim > PARTS[0]]}",
        (
            *(q, Int64(q.stride(0)), Int64(q.stride(1)), cache, Int64(cache.stride(0))),
            *(where.query_start, where.context),
            *(where.block_tables, Int64(where.block_tables.stride(0)), scratch),
            *(Int32(rows), Int32(len(where.context)), Int32(heads), Int32(cache.shape[2])),
            *(Int32(dim), Int32(where.block_size), Int32(window or 0), Float32(scale)),
        ),
        multiprocessors=launcher.multiprocessors,
    )


def _finish(
    launcher: Launcher,
    q: Tensor,
    cache: Tensor,
    where: AttentionBatch,
    window: int | None,
    out: Tensor,
    scratch: Tensor,
) -> None:
    rows, heads, dim = q.shape
    start(
        launcher,
        f"tsugiki_attention_finish_{DTYPE_NAMES[out.dtype]}",
        (
            *(scratch, where.query_start, where.context),
            *(out, Int64(out.stride(0)), Int64(out.stride(1))),
            *(Int32(rows), Int32(len(where.context)), Int32(heads), Int32(cache.shape[2])),
            *(Int32(dim), Int32(window or 0)),
        ),
        rows=rows,
    )


def _check_cache(cache: Tensor, block_size: int) -> None:
    if cache.ndim != 5 or cache.shape[0] != 2 or cache.shape[3] != block_size:
        raise BadArgument(
            f"cache: expected [2, blocks, kv_heads, {block_size}, head_dim], "
            f"found {tuple(cache.shape)}"
        )
    check_tensor("cache", cache, ACTIVATIONS, cache.shape)
    if not fits(cache):
        raise BadArgument(
            f"cache: expected blocks of a multiple of {MULTIPLE} positions and heads of a multiple "
            f"of {MULTIPLE} up to {MAX_DIM}, found {block_size} and {cache.shape[4]}"
        )


def _check_heads(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Rows of heads that can be read 16 bytes at a time."""
    check_strided(name, tensor, (dtype,), shape)
    strides = [tensor.stride(i) * tensor.itemsize for i in range(2) if tensor.shape[i] > 1]
    if tensor.data_ptr() % 16 or any(stride % 16 for stride in strides):
        raise BadArgument(
            f"{name}: expected heads that begin at multiples of 16 bytes, found strides "
            f"{tensor.stride()} at {tensor.data_ptr():#x}"
        )


def _check_sequences(where: AttentionBatch) -> None:
    sequences = len(where.context)
    check_tensor("context", where.context, (torch.int32,), (sequences,))
    check_tensor("query_start", where.query_start, (torch.int32,), (sequences + 1,))
    table = where.block_tables
    check_strided("block_tables", table, (torch.int32,), (sequences, table.shape[1]))
