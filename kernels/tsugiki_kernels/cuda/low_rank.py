"""Low-rank deltas on the GPU: their resident form and the launches that apply and rebuild them.

Owns: the mirror of src/low_rank.cuh.

Bytes of a call: A and B of every variant once for up to 64 of its rows, x once for 16 ranks of each
variant, out read and written, 4 * slices * ranks per row written and read between the two launches.
"""

from torch import Tensor

from tsugiki_kernels.cuda import fragments, records
from tsugiki_kernels.cuda.arguments import (
    check_apply,
    check_rebuild,
    check_scratch,
    dtype_name,
    out_name,
)
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Int32, Int64, Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import LowRankDelta

RANK_TILE = 16
OUTPUT_TILES = 4  # tiles of 16 outputs that a warp takes
OUTPUTS_PER_ITEM = 4 * OUTPUT_TILES * fragments.TILE  # of the four warps of a block
COLUMNS_AT_ONCE = 32
SLICE_COLUMNS = 512  # at least; 128 for each of four warps
MAX_SLICES = 8


def pack(delta: LowRankDelta) -> tuple[Tensor, Tensor]:
    """(A, B) as the kernels read them. Each must lie at a multiple of 16 bytes."""
    return fragments.pack(delta.a, 1, 2), fragments.pack(delta.b, OUTPUT_TILES, 1)


def record(
    delta: LowRankDelta, offset: int, a: int, b: int, bias: records.Bias
) -> records.LowRankPart:
    """The record of a part whose packed A and B lie at these addresses of the device."""
    slices, slice_columns = _slices(delta.shape[1])
    return records.LowRankPart(
        a=a,
        b=b,
        bias=bias,
        offset=offset,
        outputs=delta.shape[0],
        inputs=delta.shape[1],
        ranks=_padded_ranks(delta),
        slices=slices,
        slice_columns=slice_columns,
        scale=delta.scale,
    )


def resident(delta: LowRankDelta, offset: int, address: int) -> ResidentPart:
    """The part whose record lies at this address of the device."""
    outputs, inputs = delta.shape
    slices, _ = _slices(inputs)
    ranks = _padded_ranks(delta)
    return ResidentPart(
        record=address,
        inputs=inputs,
        offset=offset,
        width=offset + outputs,
        tiles=(ranks // RANK_TILE * slices, -(-outputs // OUTPUTS_PER_ITEM)),
        scratch=slices * ranks,
    )


def apply(
    launcher: Launcher, x: Tensor, out: Tensor, work: WorkList, segments: Tensor, scratch: Tensor
) -> None:
    """out[a:b, offset:] += scale * (x[a:b] A^T) B^T + bias for every segment of the work list.

    x: [rows, in], of the dtype of A and B; out: [rows, fused out], of the dtype of x or float32;
    unit stride in the last dimension. segments: work.segments on the device. scratch: float32, at
    least work.scratch values, overwritten.

    Raises:
        BadArgument: naming the argument.
    """
    check_apply(x, out, segments, work.inputs, work.width)
    check_scratch(scratch, work.scratch)
    multiprocessors, capacity = launcher.multiprocessors, Int32(len(segments) - 1)
    start(
        launcher,
        f"tsugiki_low_rank_shrink_{dtype_name('x', x)}",
        (x, Int64(x.stride(0)), scratch, segments, capacity),
        multiprocessors=multiprocessors,
    )
    start(
        launcher,
        f"tsugiki_low_rank_expand_{out_name(x, out)}",
        (scratch, out, Int64(out.stride(0)), segments, capacity),
        multiprocessors=multiprocessors,
    )


def reconstruct(launcher: Launcher, base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """out = base + scale * B A in the rows of the fused weight that the part covers, and no others.

    base, out: [fused out, in], contiguous, of the dtype of A and B; out may be base.

    Raises:
        BadArgument: naming the argument.
    """
    check_rebuild(base, part, out)
    start(
        launcher,
        f"tsugiki_low_rank_rebuild_{dtype_name('base', base)}",
        (base, out, Int64(part.record)),
        outputs=part.width - part.offset,
        inputs=part.inputs,
    )


def _slices(inputs: int) -> tuple[int, int]:
    """(slices, columns of a slice): a matter of the part alone, for it shapes the sums."""
    slices = max(1, min(MAX_SLICES, inputs // SLICE_COLUMNS))
    columns = -(-inputs // slices)
    return slices, columns + -columns % COLUMNS_AT_ONCE


def _padded_ranks(delta: LowRankDelta) -> int:
    rank = len(delta.a)
    return rank + -rank % RANK_TILE
