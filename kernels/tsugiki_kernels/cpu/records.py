"""The C structs that the kernels read, mirrored: above all one record for each part of a linear.

Owns: fields and their order, as in src/*.h and src/*.cpp. Knows nothing of where tensors lie.
"""

import ctypes
from typing import Any, ClassVar

from tsugiki_kernels.deltas import MAX_STAGES

Fields = tuple[tuple[str, Any], ...]

_I64, _I32, _F32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p

PLAIN_BITS = 32  # of a bias that is float32 values


class Bias(ctypes.Structure):
    """src/step.h: Bias."""

    _fields_: ClassVar[Fields] = (("values", _PTR), ("scale", _F32), ("bits", _I32))


class Draw(ctypes.Structure):
    """src/masks.cpp: ColumnDraw."""

    _fields_: ClassVar[Fields] = (
        ("seed", ctypes.c_uint64),
        ("identity", ctypes.c_uint64),
        ("tiles", _I64),
        ("columns", _I64),
        ("group_size", _I64),
        ("kept", _I64),
        ("kept_of_rest", _I64),
    )


class Part(ctypes.Structure):
    """src/step.h: Part. What the records of all kinds begin with."""

    _fields_: ClassVar[Fields] = (("offset", _I64), ("rows", _I64), ("bias", Bias))


class SparsePart(Part):
    """src/sparse.h: SparsePart."""

    _fields_: ClassVar[Fields] = (
        ("kept", _I64),
        ("rows_per_mask", _I64),
        ("rows_per_step", _I64),
        ("code_stride", _I64),
        ("bits", _I32),
        ("by_row", _I32),
        ("zero", _F32),
        ("gain", _F32),
        ("columns", _PTR),
        ("codes", _PTR),
        ("step", _PTR),
    )


class SignPart(Part):
    """src/dot.h: SignPart."""

    _fields_: ClassVar[Fields] = (
        ("sign_stride", _I64),
        ("gain", _F32),
        ("unused", _I32),
        ("signs", _PTR),
        ("scale", _PTR),
    )


class DensePart(Part):
    """src/dot.cpp: DensePart."""

    _fields_: ClassVar[Fields] = (("dtype", _I64), ("weight", _PTR))


class LowRankPart(Part):
    """src/low_rank.cpp: LowRankPart."""

    _fields_: ClassVar[Fields] = (
        ("rank", _I64),
        ("inputs", _I64),
        ("dtype", _I32),
        ("scale", _F32),
        ("a", _PTR),
        ("b", _PTR),
    )


class CodebookPart(Part):
    """src/codebooks.h: CodebookPart."""

    _fields_: ClassVar[Fields] = (
        ("code_stride", _I64),
        ("width", _I64),
        ("bits", _I32),
        ("groups", _I32),
        ("kind", _I32),
        ("gain", _F32),
        ("codes", _PTR),
        ("values", _PTR),
        ("step", _PTR),
    )


class TensorTrainPart(Part):
    """src/tensor_train.cpp: TensorTrainPart."""

    _fields_: ClassVar[Fields] = (
        ("stages", _I64),
        ("stage", _I64 * 4 * MAX_STAGES),
        ("core_dtype", _I32),
        ("value_dtype", _I32),
        ("zero", _F32),
        ("gain", _F32),
        ("rows_per_step", _I64),
        ("entries", _I64),
        ("cores", _PTR),
        ("row_start", _PTR),
        ("column", _PTR),
        ("value", _PTR),
        ("step", _PTR),
    )


class Activations(ctypes.Structure):
    """src/step.h: Step."""

    _fields_: ClassVar[Fields] = (
        ("x", _PTR),
        ("x_stride", _I64),
        ("inputs", _I64),
        ("out", _PTR),
        ("out_stride", _I64),
        ("dtype", _I32),
        ("out_dtype", _I32),
        ("threads", _I32),
        ("unused", _I32),
    )


class Apply(Activations):
    """src/step.h: Apply. One call for all variants of a step."""

    _fields_: ClassVar[Fields] = (
        ("linears", _PTR),
        ("stride", _I64),
        ("spans", _PTR),
        ("count", _PTR),
    )


class Reconstruct(ctypes.Structure):
    """src/reconstruct.cpp: Reconstruct."""

    _fields_: ClassVar[Fields] = (
        ("linear", _PTR),
        ("base", _PTR),
        ("out", _PTR),
        ("outputs", _I64),
        ("inputs", _I64),
        ("dtype", _I32),
        ("threads", _I32),
    )


class AddBiases(ctypes.Structure):
    """src/dot.cpp: AddBiases."""

    _fields_: ClassVar[Fields] = (("linear", _PTR), ("part_bytes", _I64), ("out", _PTR))
