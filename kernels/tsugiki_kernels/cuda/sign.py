"""Sign deltas on the GPU: their resident form and the launches that apply and rebuild them.

Owns: the mirror of src/sign.cuh.

Bytes of a call: the sign bits of every variant once for up to 64 of its rows, x once for 64 outputs
of each variant (from L2), out read and written. One launch.
"""

import torch
from torch import Tensor

from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.arguments import (
    check_apply,
    check_rebuild,
    dtype_name,
    out_name,
)
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Int32, Int64, Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import SignDelta

OUTPUTS_PER_ITEM = 64
UNIT_COLUMNS = 256


def pack(delta: SignDelta) -> tuple[Tensor, Tensor]:
    """(signs, scale) as the kernels read them. Each must lie at a multiple of 16 bytes.

    signs: uint8 [outputs / 64, inputs / 256, 4, 32, 4, 4], padded. The bytes stay as they are,
    eight columns each; output 64 G + 8 g + 2 r + h, byte 32 U + 8 i + 4 b + t lies at
    [G, U, r, 4 g + t, i, 2 b + h].
    """
    outputs, width = delta.signs.shape
    unit_bytes = UNIT_COLUMNS // 8
    padding = (0, -width % unit_bytes, 0, -outputs % OUTPUTS_PER_ITEM)
    padded = torch.nn.functional.pad(delta.signs, padding)
    groups, units = len(padded) // OUTPUTS_PER_ITEM, padded.shape[1] // unit_bytes
    axes = padded.view(groups, 8, 4, 2, units, 4, 2, 4)  # G g r h U i b t
    ordered = axes.permute(0, 4, 2, 1, 7, 5, 6, 3)  # G U r g t i b h
    return ordered.reshape(groups, units, 4, 32, 4, 4), delta.scale


def record(
    delta: SignDelta, offset: int, signs: int, scale: int, bias: records.Bias
) -> records.SignPart:
    """The record of a part whose packed tensors lie at these addresses of the device."""
    return records.SignPart(
        signs=signs,
        scale=scale,
        bias=bias,
        offset=offset,
        outputs=delta.shape[0],
        inputs=delta.shape[1],
        gain=delta.gain,
    )


def resident(delta: SignDelta, offset: int, address: int) -> ResidentPart:
    """The part whose record lies at this address of the device."""
    outputs, inputs = delta.shape
    return ResidentPart(
        record=address,
        inputs=inputs,
        offset=offset,
        width=offset + outputs,
        tiles=(-(-outputs // OUTPUTS_PER_ITEM), 0),
        scratch=0,
    )


def apply(
    launcher: Launcher, x: Tensor, out: Tensor, work: WorkList, segments: Tensor, scratch: Tensor
) -> None:
    """out[a:b, offset:] += S (signs x[a:b]) + bias for every segment of the work list.

    x: [rows, in]; out: [rows, fused out], of the dtype of x or float32; unit stride in the last
    dimension. segments: work.segments on the device. scratch: not used, work.scratch is 0.

    Raises:
        BadArgument: naming the argument.
    """
    check_apply(x, out, segments, work.inputs, work.width)
    start(
        launcher,
        f"tsugiki_sign_apply_{out_name(x, out)}",
        (x, Int64(x.stride(0)), out, Int64(out.stride(0)), segments, Int32(len(segments) - 1)),
        multiprocessors=launcher.multiprocessors,
    )


def reconstruct(launcher: Launcher, base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """out = base + S signs in the rows of the fused weight that the part covers, and no others.

    base, out: [fused out, in], contiguous, of one dtype; out may be base.

    Raises:
        BadArgument: naming the argument.
    """
    check_rebuild(base, part, out)
    start(
        launcher,
        f"tsugiki_sign_rebuild_{dtype_name('base', base)}",
        (base, out, Int64(part.record)),
        outputs=part.width - part.offset,
    )
