"""Tensor trains with sparse entries on the GPU: their resident form and their launches.

Owns: the mirror of src/tensor_train.cuh.

Bytes of a call: cores, columns and values of every variant once for up to four of its rows (from L2
for the next four), x once for each element of the state and gathered for each entry (from L1), 4 *
state per row written and read between the two launches, out read and written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.arguments import (
    check_apply,
    check_rebuild,
    check_scratch,
    dtype_name,
    out_name,
)
from tsugiki_kernels.cuda.kernels import LANES, start
from tsugiki_kernels.cuda.launcher import Int32, Int64, Launcher
from tsugiki_kernels.cuda.tensor_train_pair import Pair, pair_of, paired_cores
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList
from tsugiki_kernels.deltas import Stage, TensorTrainDelta

OUTPUTS_PER_ITEM = 32
LEAD_THREADS = 128
COLUMNS = 8  # of a lane at a time
TURNS = 4  # elements of the state for each thread of an item, where no warp is wanted for one


def pack(delta: TensorTrainDelta) -> tuple[Tensor, ...]:
    """(first core, last core, row_start, column, value, step). Each must lie at a multiple of 16
    bytes. The rows of the first core are padded to a multiple of COLUMNS; without a train there are
    no cores.

    Raises:
        BadArgument: see tensor_train_pair.pair_of.
    """
    sparse = (delta.row_start, delta.column, delta.value, delta.step)
    if pair_of(delta.stages) is None:
        return sparse
    first, last = paired_cores(delta)
    padded = torch.nn.functional.pad(first, (0, -first.shape[1] % COLUMNS))
    return padded.contiguous(), last.contiguous(), *sparse


def record(
    delta: TensorTrainDelta, offset: int, addresses: Sequence[int], bias: records.Bias
) -> records.TensorTrainPart:
    """The record of a part whose packed tensors lie at these addresses of the device."""
    pair = pair_of(delta.stages)
    row_start, column, value, step = addresses[-4:]
    fields = {} if pair is None else _train_fields(pair, addresses)
    return records.TensorTrainPart(
        row_start=row_start,
        column=column,
        value=value,
        step=step,
        bias=bias,
        offset=offset,
        outputs=delta.shape[0],
        inputs=delta.shape[1],
        rows_per_step=delta.rows_per_step,
        is_coded=int(delta.value.dtype == torch.uint8),
        zero=delta.zero,
        gain=delta.gain,
        **({"first_stage": NO_STAGE, "last_stage": NO_STAGE, "lanes": 1} | fields),
    )


NO_STAGE = records.TrainStage(1, 1, 1, 1)


def _train_fields(pair: Pair, addresses: Sequence[int]) -> dict[str, object]:
    return {
        "first": addresses[0],
        "last": addresses[1],
        "first_stage": records.TrainStage(*pair.first),
        "last_stage": records.TrainStage(*pair.last),
        "state": pair.state,
        "ranks": pair.ranks,
        "first_stride": pair.first.inputs + -pair.first.inputs % COLUMNS,
        "lanes": _lanes(pair.first),
        "elements": _elements(pair.first),
    }


def resident(delta: TensorTrainDelta, offset: int, address: int) -> ResidentPart:
    """The part whose record lies at this address of the device."""
    outputs, inputs = delta.shape
    pair = pair_of(delta.stages)
    return ResidentPart(
        record=address,
        inputs=inputs,
        offset=offset,
        width=offset + outputs,
        tiles=(
            0 if pair is None else -(-pair.state // _elements(pair.first)),
            -(-outputs // OUTPUTS_PER_ITEM),
        ),
        scratch=0 if pair is None else pair.state,
    )


def apply(
    launcher: Launcher, x: Tensor, out: Tensor, work: WorkList, segments: Tensor, scratch: Tensor
) -> None:
    """out[a:b, offset:] += x[a:b] (T + E)^T + bias for every segment of the work list.

    x: [rows, in], of the dtype of the cores; out: [rows, fused out], of the dtype of x or float32;
    unit stride in the last dimension. segments: work.segments on the device. scratch: float32, at
    least work.scratch values, overwritten.

    Raises:
        BadArgument: naming the argument.
    """
    check_apply(x, out, segments, work.inputs, work.width)
    check_scratch(scratch, work.scratch)
    listed = (segments, Int32(len(segments) - 1))
    own, stride = out_name(x, out), Int64(x.stride(0))
    if work.passes[0]:
        name = f"tsugiki_tensor_train_lead_{dtype_name('x', x)}"
        start(
            launcher, name, (x, stride, scratch, *listed), multiprocessors=launcher.multiprocessors
        )
    start(
        launcher,
        f"tsugiki_tensor_train_add_{own}",
        (x, stride, scratch, out, Int64(out.stride(0)), *listed),
        multiprocessors=launcher.multiprocessors,
    )


def reconstruct(launcher: Launcher, base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """out = base + T + E in the rows of the fused weight that the part covers, and no others.

    base, out: [fused out, in], contiguous, of the dtype of the cores; out may be base.

    Raises:
        BadArgument: naming the argument.
    """
    check_rebuild(base, part, out)
    start(
        launcher,
        f"tsugiki_tensor_train_rebuild_{dtype_name('base', base)}",
        (base, out, Int64(part.record)),
        outputs=part.width - part.offset,
    )


def _lanes(first: Stage) -> int:
    """Lanes that share an element of the state: each has eight inputs at a time where these are
    neighbours, else neighbouring lanes read neighbouring inputs."""
    if first.inner > 1:
        return 1
    eights = -(-first.inputs // COLUMNS)
    return min(LANES, 1 << (eights - 1).bit_length())


def _elements(first: Stage) -> int:
    """Elements of the state that an item computes."""
    lanes = _lanes(first)
    return LEAD_THREADS // lanes * (1 if lanes == LANES else TURNS)
