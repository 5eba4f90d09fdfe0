"""Calls of a sketched linear (src/codebooks.cpp): argument checks and the C structs of one call.

Owns: the record of a base's weight. Knows nothing of the arithmetic, nor of variants (staging.py).
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import ClassVar

from torch import Tensor

from tsugiki_kernels.check_weights import check_codebook_weight
from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.cpu import parts, records
from tsugiki_kernels.cpu.compressed import checked
from tsugiki_kernels.cpu.deltas import activations
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import PLAIN_BITS, Activations, CodebookPart, Fields
from tsugiki_kernels.interface import Span


class BaseLinear(ctypes.Structure):
    """src/codebooks.cpp: BaseLinear."""

    _fields_: ClassVar[Fields] = (
        ("step", Activations),
        ("base", ctypes.c_void_p),
        ("spans", ctypes.c_void_p),
        ("span_count", ctypes.c_int64),
        ("deltas", ctypes.c_void_p),
    )


_LINEAR, _APPLY = "tsugiki_codebook_linear", "tsugiki_codebook_apply"


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
    check_codebook_weight(weight)
    spans, plain = checked(x, bias, out, spans, weight.shape, codebooks=weight.codebooks)
    part = _record(weight, plain)
    flat = array("q", chain.from_iterable(spans))
    where = ctypes.addressof(part), flat.buffer_info()[0], len(spans), None
    kept = (x, out, weight, plain, part, flat)
    return Operation(_LINEAR, BaseLinear(Activations(*activations(x, out)), *where), kept=kept)


def changed(base: Operation, delta: Operation) -> Operation | None:
    """A sketched linear and the changes of its codebooks that come next, as one operation in which
    a row meets its own codebooks and is rounded once; None: the second does not follow the first in
    this way."""
    if (base.function, delta.function) != (_LINEAR, _APPLY):
        return None
    linear, deltas = base.arguments, delta.arguments
    if (linear.step.out, linear.step.out_stride) != (deltas.out, deltas.out_stride):
        return None
    where = linear.base, linear.spans, linear.span_count, ctypes.addressof(deltas)
    both = BaseLinear(linear.step, *where)
    return Operation(_LINEAR, both, kept=(base.kept, delta.kept, deltas))


def _record(weight: CodebookWeight, bias: Tensor | None) -> CodebookPart:
    added = records.Bias() if bias is None else records.Bias(bias.data_ptr(), 1.0, PLAIN_BITS)
    return parts.codebooks(
        (0, weight.shape[0], added),
        weight.index,
        gain=1.0,
        kind=0,
        values=weight.codebooks.data_ptr(),
        step=None,
    )
