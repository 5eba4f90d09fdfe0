"""The C struct of one part of a staged linear.

Owns: which field holds what, for every kind of delta, and the numbers that stand for dtypes. Does
not know how an extent is laid out (staging.py) nor what the kernels do (src/).
"""

import torch
from torch import Tensor

from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.cpu import records
from tsugiki_kernels.cpu.records import (
    PLAIN_BITS,
    CodebookPart,
    DensePart,
    LowRankPart,
    Part,
    SignPart,
    SparsePart,
    TensorTrainPart,
)
from tsugiki_kernels.deltas import (
    Bias,
    CodebookDelta,
    CodedBias,
    Delta,
    DenseDelta,
    LowRankDelta,
    Placed,
    SignDelta,
    SparseDelta,
    TensorTrainDelta,
)
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import Extent

LANES = 16
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BYTES = 3  # what DTYPES has no number for: codes of a byte each
RECORDS: dict[type[Delta], type[Part]] = {
    SparseDelta: SparsePart,
    SignDelta: SignPart,
    DenseDelta: DensePart,
    LowRankDelta: LowRankPart,
    CodebookDelta: CodebookPart,
    TensorTrainDelta: TensorTrainPart,
}

Head = tuple[int, int, records.Bias]  # the fields of every record: offset, rows, bias


def by_row(delta: SparseDelta) -> bool:
    """Its tiles are no whole vectors: each row's codes lie by themselves."""
    return delta.rows_per_mask % LANES != 0


def record(placed: Placed, extent: Extent) -> Part:
    """The C struct of one part."""
    head = (placed.offset, placed.delta.shape[0], _bias(placed.delta.bias, extent))
    match placed.delta:
        case SparseDelta() as delta:
            return _sparse(delta, head, extent)
        case SignDelta() as delta:
            return SignPart(
                *head,
                sign_stride=delta.signs.shape[1],
                gain=delta.gain,
                signs=extent.address_of(delta.signs),
                scale=extent.address_of(delta.scale),
            )
        case DenseDelta(weight=Tensor() as weight):
            return DensePart(*head, dtype=DTYPES[weight.dtype], weight=extent.address_of(weight))
        case DenseDelta():
            return DensePart(*head)
        case LowRankDelta() as delta:
            return LowRankPart(
                *head,
                rank=delta.a.shape[0],
                inputs=delta.a.shape[1],
                dtype=DTYPES[delta.a.dtype],
                scale=delta.scale,
                a=extent.address_of(delta.a),
                b=extent.address_of(delta.b),
            )
        case CodebookDelta() as delta:
            return codebooks(
                head,
                delta.index,
                gain=delta.gain,
                kind=int(delta.step is not None),
                values=extent.address_of(delta.values),
                step=None if delta.step is None else extent.address_of(delta.step),
            )
        case TensorTrainDelta() as delta:
            return _tensor_train(delta, head, extent)


def _tensor_train(delta: TensorTrainDelta, head: Head, extent: Extent) -> TensorTrainPart:
    tensors = ("cores", "row_start", "column", "value", "step")
    record = TensorTrainPart(
        *head,
        stages=len(delta.stages),
        core_dtype=DTYPES[delta.cores.dtype],
        value_dtype=BYTES if delta.value.dtype == torch.uint8 else DTYPES[torch.float16],
        zero=delta.zero,
        gain=delta.gain,
        rows_per_step=delta.rows_per_step,
        entries=len(delta.value),
        **{name: extent.address_of(getattr(delta, name)) for name in tensors},
    )
    for place, stage in enumerate(delta.stages):
        record.stage[place][:] = stage
    return record


def _bias(bias: Bias | None, extent: Extent) -> records.Bias:
    if bias is None:
        return records.Bias()
    if isinstance(bias, CodedBias):
        return records.Bias(extent.address_of(bias.codes), bias.scale, bias.bits)
    return records.Bias(extent.address_of(bias), 1.0, PLAIN_BITS)


def codebooks(head: Head, index: IndexMap, **values: float | None) -> CodebookPart:
    """The record of something that has a value for each entry of each codebook.

    Raises:
        BadArgument: codebooks whose codes do not fill whole bytes, or that lie elsewhere.
    """
    width = index.shape[1] // index.groups
    if width * index.bits % 8:
        raise BadArgument(
            f"groups: {width} codes of {index.bits} bits fill no whole bytes; use the reference"
        )
    if not index.codes.is_cpu:
        raise BadArgument(f"codes: expected a tensor on the CPU, found {index.codes.device}")
    return CodebookPart(
        *head,
        code_stride=index.codes.shape[1],
        width=width,
        bits=index.bits,
        groups=index.groups,
        codes=index.codes.data_ptr(),
        **values,
    )


def _sparse(delta: SparseDelta, head: Head, extent: Extent) -> SparsePart:
    if not delta.columns.is_cpu:
        raise BadArgument(f"columns: expected a tensor on the CPU, found {delta.columns.device}")
    return SparsePart(
        *head,
        kept=delta.columns.shape[1],
        rows_per_mask=delta.rows_per_mask,
        rows_per_step=delta.rows_per_step,
        code_stride=delta.codes.shape[1],
        bits=delta.bits,
        by_row=by_row(delta),
        zero=delta.zero,
        gain=delta.gain,
        columns=delta.columns.data_ptr(),
        codes=extent.address_of(delta.codes),
        step=extent.address_of(delta.step),
    )
