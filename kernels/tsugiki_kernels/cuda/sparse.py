"""Sparse quantized deltas on the GPU: their resident forms and the launches that apply them.

Owns: the mirror of src/sparse.cuh, which form a delta takes, the windows of x.

A work list may mix both forms: tiles are the items of its first pass, rows of its second.

Bytes of a call: codes (and columns or places) of every variant once for each eight (tiles) or four
(rows) of its tokens, x once for 256 (tiles) or 128 (rows) outputs, out read and written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.check import check_tensor, kept_columns
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.arguments import (
    check_apply,
    check_rebuild,
    dtype_name,
)
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Argument, Int32, Int64, Launcher
from tsugiki_kernels.cuda.sparse_forms import (
    in_tiles,
    pack_rows,
    pack_tiles,
    row_layout,
)
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import SparseDelta
from tsugiki_kernels.operands import ColumnDraw

TILE_OUTPUTS = 256  # outputs of an item in tile form
ROW_OUTPUTS = 128  # outputs of an item in row form
WINDOW_UNIT = 256
# Columns: two blocks of 6144 share a multiprocessor of 228 KB; of sm_75 a block has 64 KB
LARGEST_WINDOW = 4096
HOPPER_WINDOW = 6144  # sm_90 and sm_100 have 228 KB
TURING_WINDOW = 2048


def pack(delta: SparseDelta) -> tuple[Tensor, ...]:
    """(codes, step) of tiles, (codes, step, places) of rows, each at a multiple of 16 bytes."""
    if in_tiles(delta):
        return pack_tiles(delta), delta.step
    places, codes = pack_rows(delta)
    return codes, delta.step, places


def record(
    delta: SparseDelta, offset: int, packed: Sequence[int], bias: records.Bias
) -> records.SparsePart:
    """The record of a part whose packed tensors lie at these addresses of the device.

    A tile's kept columns are the delta's own, where they are: others share them.
    """
    tiles = in_tiles(delta)
    block, windows, entries = (0, 0, 0) if tiles else row_layout(delta)
    return records.SparsePart(
        columns=delta.columns.data_ptr() if tiles else None,
        codes=packed[0],
        places=None if tiles else packed[2],
        step=packed[1],
        bias=bias,
        offset=offset,
        outputs=delta.shape[0],
        inputs=delta.shape[1],
        kept=delta.columns.shape[1],
        rows_per_mask=delta.rows_per_mask,
        rows_per_step=delta.rows_per_step,
        bits=delta.bits,
        block=block,
        windows=windows,
        entries=entries,
        zero=delta.zero,
        gain=delta.gain,
    )


def resident(delta: SparseDelta, offset: int, address: int) -> ResidentPart:
    """The part whose record lies at this address of the device."""
    outputs, inputs = delta.shape
    tiles, rows = -(-outputs // TILE_OUTPUTS), -(-outputs // ROW_OUTPUTS)
    return ResidentPart(
        record=address,
        inputs=inputs,
        offset=offset,
        width=offset + outputs,
        tiles=(tiles, 0) if in_tiles(delta) else (0, rows),
        scratch=0,
    )


def apply(
    launcher: Launcher, x: Tensor, out: Tensor, work: WorkList, segments: Tensor, scratch: Tensor
) -> None:
    """out[a:b, offset:] += x[a:b] D^T + bias for every segment of the work list.

    x: [rows, in]; out: [rows, fused out], of the dtype of x or float32; unit stride in the last
    dimension. segments: work.segments on the device. scratch: not used, work.scratch is 0. One
    launch for each form that the list has. Tensor cores take tiles in float16, and in bfloat16 from
    sm_80 on.

    Raises:
        BadArgument: naming the argument.
    """
    check_apply(x, out, segments, work.inputs, work.width)
    tiles, rows = work.passes
    if tiles:
        _apply_tiles(launcher, x, out, work, segments)
    if rows:
        start(
            launcher,
            f"tsugiki_sparse_rows_{dtype_name('x', x)}",
            _operands(x, out, segments),
            multiprocessors=launcher.multiprocessors,
        )


def _apply_tiles(
    launcher: Launcher, x: Tensor, out: Tensor, work: WorkList, segments: Tensor
) -> None:
    dtype = dtype_name("x", x)
    scalar = dtype == "f32" or (dtype == "bf16" and launcher.capability < (8, 0))
    window = _window(work.inputs, launcher.capability)
    start(
        launcher,
        f"tsugiki_sparse_tiles_{'scalar_' if scalar else ''}{dtype}",
        (*_operands(x, out, segments), Int32(window)),
        multiprocessors=launcher.multiprocessors,
        window=window,
    )


def reconstruct(launcher: Launcher, base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """out = base + D in the rows of the fused weight that the part covers, and no others.

    base, out: [fused out, in], contiguous, of one dtype; out may be base.

    Raises:
        BadArgument: naming the argument.
    """
    check_rebuild(base, part, out)
    form = "tiles" if part.tiles[0] else "rows"
    start(
        launcher,
        f"tsugiki_sparse_rebuild_{form}_{dtype_name('base', base)}",
        (base, out, Int64(part.record)),
        outputs=part.width - part.offset,
    )


def draw_columns(launcher: Launcher, draw: ColumnDraw, out: Tensor) -> None:
    """The kept columns of a seeded mask on the device, bit for bit the CPU's.

    out: uint16 [tiles, kept], contiguous. See KernelBackend.draw_columns. They are there for
    whatever the stream is asked afterwards.

    Raises:
        BadArgument: see check.kept_columns, or naming the argument.
    """
    check_tensor("out", out, (torch.uint16,), (draw.tiles, kept_columns(draw)))
    if not out.numel():
        return
    start(
        launcher,
        "tsugiki_sparse_draw_columns",
        (
            out,
            _word(draw.seed),
            _word(draw.identity),
            *map(Int32, (draw.columns, draw.group_size, draw.kept, draw.kept_of_rest)),
        ),
        tiles=draw.tiles,
        groups=-(-draw.columns // draw.group_size),
    )


def _word(value: int) -> Int64:
    """Unsigned 64 bits as the two's complement that travels."""
    return Int64(value - (1 << 64) if value >> 63 else value)


def _operands(x: Tensor, out: Tensor, segments: Tensor) -> tuple[Argument, ...]:
    floats = Int32(int(out.dtype == torch.float32))
    strides = Int64(x.stride(0)), Int64(out.stride(0))
    return (x, strides[0], out, strides[1], floats, segments, Int32(len(segments) - 1))


def _window(inputs: int, capability: tuple[int, int]) -> int:
    """Columns of x in shared memory: all of them, where they fit, else equal shares."""
    largest = largest_window(capability)
    share = -(-max(inputs, 1) // -(-max(inputs, 1) // largest))
    return -(-share // WINDOW_UNIT) * WINDOW_UNIT


def largest_window(capability: tuple[int, int]) -> int:
    """Columns that a block of tiles may have in shared memory."""
    if capability < (8, 0):
        return TURING_WINDOW
    return HOPPER_WINDOW if capability[0] in (9, 10) else LARGEST_WINDOW
