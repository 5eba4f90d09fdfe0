"""Calls of a sketched linear (src/codebooks.h): argument checks and the C structs of one call.

Owns: the record of a base's weight. Knows nothing of the arithmetic, nor of variants (staging.py).
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import ClassVar

from torch import Tensor

from tsugiki_kernels.check import check_codebook_weight, check_on_cpu, check_spans, check_tensor
from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.cpu import records, staging
from tsugiki_kernels.cpu.deltas import activations, check_strides
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import PLAIN_BITS, Apply, CodebookPart, Fields
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span


class CodebookLinear(ctypes.Structure):
    """src/codebooks.h: BaseCodebookLinear."""

    _fields_: ClassVar[Fields] = (("count", ctypes.c_int64), ("part", CodebookPart))


def linear(
    x: Tensor,
    weight: CodebookWeight,
    bias: Tensor | None,
    out: Tensor,
    spans: Sequence[Span] | None,
) -> Operation:
    """See ReadsCodebooks.linear_codebooks.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    spans = [(0, len(x))] if spans is None else spans
    check_codebook_weight(weight)
    check_spans(x, out, len(spans), spans)
    check_strides(x, out)
    check_on_cpu(x=x, out=out, codebooks=weight.codebooks)
    outputs, inputs = weight.shape
    if (x.shape[1], out.shape[1]) != (inputs, outputs):
        raise BadArgument(f"x, out: expected widths {inputs} and {outputs}")
    plain = None if bias is None else bias.float()
    if plain is not None:
        check_tensor("bias", plain, (plain.dtype,), (outputs,))
    own = CodebookLinear(1, _record(weight, plain))
    addresses = array("Q", [ctypes.addressof(own)] * len(spans))
    flat = array("q", chain.from_iterable(spans))
    count = ctypes.c_int64(len(spans))
    where = addresses.buffer_info()[0], 1, flat.buffer_info()[0], ctypes.addressof(count)
    kept = (x, out, weight, plain, own, addresses, flat, count)
    return Operation("tsugiki_codebook_linear", Apply(*activations(x, out), *where), kept=kept)


def _record(weight: CodebookWeight, bias: Tensor | None) -> CodebookPart:
    added = records.Bias() if bias is None else records.Bias(bias.data_ptr(), 1.0, PLAIN_BITS)
    return staging.codebooks(
        (0, weight.shape[0], added),
        weight.index,
        gain=1.0,
        kind=0,
        values=weight.codebooks.data_ptr(),
        step=None,
    )
