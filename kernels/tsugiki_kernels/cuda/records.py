"""The structs of device memory that kernels read, mirrored: one record for each part of a linear.

Owns: fields and their order, as in src/*.cuh. Knows nothing of where tensors lie.
"""

import ctypes
from typing import Any, ClassVar

Fields = tuple[tuple[str, Any], ...]

_I32, _F32, _PTR = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p

PLAIN_BITS = 32  # of a bias that is float32 values


def pointer_words(record_type: type[ctypes.Structure]) -> list[int]:
    """Which words of 8 bytes of a record are addresses."""
    words: list[int] = []
    for name, kind, *_ in record_type._fields_:
        word = getattr(record_type, name).offset // ctypes.sizeof(_PTR)
        if kind is _PTR:
            words.append(word)
        elif issubclass(kind, ctypes.Structure):
            words += [word + inner for inner in pointer_words(kind)]
    return words


class Bias(ctypes.Structure):
    """src/bias.cuh: Bias. All zeros: there is none."""

    _fields_: ClassVar[Fields] = (("values", _PTR), ("scale", _F32), ("bits", _I32))


class LowRankPart(ctypes.Structure):
    """src/low_rank.cuh: LowRankPart."""

    _fields_: ClassVar[Fields] = (
        ("a", _PTR),
        ("b", _PTR),
        ("bias", Bias),
        ("offset", _I32),
        ("outputs", _I32),
        ("inputs", _I32),
        ("ranks", _I32),
        ("slices", _I32),
        ("slice_columns", _I32),
        ("scale", _F32),
        ("unused", _I32),
    )


class SignPart(ctypes.Structure):
    """src/sign.cuh: SignPart."""

    _fields_: ClassVar[Fields] = (
        ("signs", _PTR),
        ("scale", _PTR),
        ("bias", Bias),
        ("offset", _I32),
        ("outputs", _I32),
        ("inputs", _I32),
        ("gain", _F32),
    )


class SparsePart(ctypes.Structure):
    """src/sparse.cuh: SparsePart."""

    _fields_: ClassVar[Fields] = (
        ("columns", _PTR),
        ("codes", _PTR),
        ("places", _PTR),
        ("step", _PTR),
        ("bias", Bias),
        ("offset", _I32),
        ("outputs", _I32),
        ("inputs", _I32),
        ("kept", _I32),
        ("rows_per_mask", _I32),
        ("rows_per_step", _I32),
        ("bits", _I32),
        ("block", _I32),
        ("windows", _I32),
        ("entries", _I32),
        ("zero", _F32),
        ("gain", _F32),
    )


class CodebookPart(ctypes.Structure):
    """src/codebooks.cu: CodebookPart."""

    _fields_: ClassVar[Fields] = (
        ("codes", _PTR),
        ("values", _PTR),
        ("step", _PTR),
        ("bias", Bias),
        ("offset", _I32),
        ("outputs", _I32),
        ("inputs", _I32),
        ("groups", _I32),
        ("bits", _I32),
        ("is_base", _I32),
        ("gain", _F32),
        ("unused", _I32),
    )


class TrainStage(ctypes.Structure):
    """src/tensor_train.cuh: TrainStage."""

    _fields_: ClassVar[Fields] = (
        ("outer", _I32),
        ("inputs", _I32),
        ("outputs", _I32),
        ("inner", _I32),
    )


class TensorTrainPart(ctypes.Structure):
    """src/tensor_train.cuh: TensorTrainPart."""

    _fields_: ClassVar[Fields] = (
        ("first", _PTR),
        ("last", _PTR),
        ("row_start", _PTR),
        ("column", _PTR),
        ("value", _PTR),
        ("step", _PTR),
        ("bias", Bias),
        ("offset", _I32),
        ("outputs", _I32),
        ("inputs", _I32),
        ("first_stage", TrainStage),
        ("last_stage", TrainStage),
        ("state", _I32),
        ("ranks", _I32),
        ("first_stride", _I32),
        ("lanes", _I32),
        ("elements", _I32),
        ("rows_per_step", _I32),
        ("is_coded", _I32),
        ("zero", _F32),
        ("gain", _F32),
        ("unused", _I32),
    )
