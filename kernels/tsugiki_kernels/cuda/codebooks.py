"""Weights that are looked up, on the GPU: a sketched base's linears and what variants add to them.

Owns: the mirror of src/codebooks.cu and its launches. A base's linear is a list of one part, whose
product is the output.

Bytes of a call: the indices and codebooks of each part once for up to four of its rows (from L2 for
the next four), x once for each output (from L1), out written. One launch for the base, one for all
its variants.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.check import check_spans, check_tensor
from tsugiki_kernels.check_weights import check_codebook_weight
from tsugiki_kernels.codebooks import CodebookWeight, IndexMap
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.arguments import check_apply, check_rebuild, dtype_name, out_name
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Int32, Int64, Launcher
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList, work_list
from tsugiki_kernels.deltas import CodebookDelta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span

OUTPUTS_PER_ITEM = 64
COLUMNS = 8  # of a lane at a time
MOST_ENTRIES = 256  # of all codebooks of a row, in shared memory


def pack(delta: CodebookDelta) -> tuple[Tensor, ...]:
    """(values, step) as they are; halves have no step.

    Raises:
        BadArgument: see `check_index_fits`.
    """
    check_index_fits(delta.index)
    return (delta.values,) if delta.step is None else (delta.values, delta.step)


def check_index_fits(index: IndexMap) -> None:
    """What the kernels demand of a map beside check.check_index.

    Raises:
        BadArgument: stretches of no whole eights, or too many codebooks.
    """
    width, entries = index.shape[1] // index.groups, index.groups << index.bits
    if width % COLUMNS or entries > MOST_ENTRIES:
        raise BadArgument(
            f"groups: {index.groups} of {width} columns and {1 << index.bits} entries; the CUDA "
            f"kernels take multiples of {COLUMNS} columns and up to {MOST_ENTRIES} entries a row: "
            "use --kernels reference"
        )


def record(
    delta: CodebookDelta, offset: int, addresses: Sequence[int], bias: records.Bias
) -> records.CodebookPart:
    """The record of a part whose packed tensors lie at these addresses of the device; its map is
    where the base has it."""
    return _record(
        delta.index,
        values=addresses[0],
        step=None if delta.step is None else addresses[1],
        bias=bias,
        offset=offset,
        gain=delta.gain,
    )


def _record(index: IndexMap, **fields: object) -> records.CodebookPart:
    return records.CodebookPart(
        codes=index.codes.data_ptr(),
        outputs=index.shape[0],
        inputs=index.shape[1],
        groups=index.groups,
        bits=index.bits,
        **fields,
    )


def resident(delta: CodebookDelta, offset: int, address: int) -> ResidentPart:
    """The part whose record lies at this address of the device."""
    return _resident(delta.shape, offset, address)


def _resident(shape: tuple[int, int], offset: int, address: int) -> ResidentPart:
    outputs, inputs = shape
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
    """out[a:b, offset:] += x[a:b] D^T + bias for every segment of the work list.

    x: [rows, in]; out: [rows, fused out], of the dtype of x or float32; unit stride in the last
    dimension. segments: work.segments on the device. scratch: not used, work.scratch is 0.

    Raises:
        BadArgument: naming the argument.
    """
    check_apply(x, out, segments, work.inputs, work.width)
    start(
        launcher,
        f"tsugiki_codebook_apply_{out_name(x, out)}",
        (x, Int64(x.stride(0)), out, Int64(out.stride(0)), segments, Int32(len(segments) - 1)),
        multiprocessors=launcher.multiprocessors,
    )


def reconstruct(launcher: Launcher, base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """out = base + D in the rows of the fused weight that the part covers, and no others.

    base, out: [fused out, in], contiguous, of one dtype; out may be base.

    Raises:
        BadArgument: naming the argument.
    """
    check_rebuild(base, part, out)
    start(
        launcher,
        f"tsugiki_codebook_rebuild_{dtype_name('base', base)}",
        (base, out, Int64(part.record)),
        outputs=part.width - part.offset,
    )


def linear(
    execution: Execution,
    x: Tensor,
    weight: CodebookWeight,
    bias: Tensor | None,
    out: Tensor,
    spans: Sequence[Span],
) -> None:
    """See ReadsCodebooks.linear_codebooks.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_codebook_weight(weight)
    check_index_fits(weight.index)
    check_spans(x, out, len(spans), spans)
    if out.shape[1] != weight.shape[0]:
        raise BadArgument(f"out: expected {weight.shape[0]} columns, found {out.shape[1]}")
    added = None if bias is None else bias.float()
    if added is not None:
        check_tensor("bias", added, (torch.float32,), (weight.shape[0],))
    launcher = execution.launcher
    there = _on(launcher.device, _base_record(weight, added))
    part = _resident(weight.shape, 0, there.data_ptr())
    work = work_list([[part]] * len(spans), spans)
    if not work.passes[0]:  # no span has a row
        return
    segments = work.segments.to(launcher.device)
    apply(launcher, x, out, work, segments, segments)
    execution.keep((weight, added, there))


def _base_record(weight: CodebookWeight, bias: Tensor | None) -> records.CodebookPart:
    added = (
        records.Bias() if bias is None else records.Bias(bias.data_ptr(), 1.0, records.PLAIN_BITS)
    )
    values = weight.codebooks.data_ptr()
    return _record(weight.index, values=values, step=None, bias=added, gain=1.0, is_base=1)


def _on(device: torch.device, content: ctypes.Structure) -> Tensor:
    """uint8: the bytes of a record in device memory."""
    return torch.frombuffer(bytearray(bytes(content)), dtype=torch.uint8).to(device, copy=True)
