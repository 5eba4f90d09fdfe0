"""Checks of untrusted packed modules that every codec makes.

Owns: part names, dtypes, shapes, finiteness. Does not know: what a part means.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tsugiki.codecs.base import Packed, Part
from tsugiki.errors import InvalidArtifact


def check_parts(packed: Packed, expected: Mapping[str, Part]) -> None:
    """The stored tensors are exactly the expected ones, and every float in them is finite.

    Raises:
        InvalidArtifact: naming the part, what it is and what it should be.
    """
    if set(packed.tensors) != set(expected):
        raise InvalidArtifact(
            f"parts are {sorted(packed.tensors)}; {packed.codec} expects {sorted(expected)}"
        )
    for part, (dtype, shape) in expected.items():
        tensor = packed.tensors[part]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InvalidArtifact(
                f"part {part!r} is {tensor.dtype} {list(tensor.shape)}; "
                f"expected {dtype} {list(shape)}"
            )
        check_finite(tensor, f"part {part!r}")


def all_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity."""
    return not tensor.dtype.is_floating_point or bool(torch.isfinite(tensor).all())


def check_finite(tensor: Tensor, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        InvalidArtifact: with the index of the first one.
    """
    if not all_finite(tensor):
        where = int((~torch.isfinite(tensor.reshape(-1))).nonzero()[0])
        raise InvalidArtifact(
            f"{what} holds {float(tensor.reshape(-1)[where])} at index {where}: "
            "the fine-tune or the file is broken; compress again from a finite checkpoint"
        )


def check_linear(shape: tuple[int, ...], codec: str) -> tuple[int, int]:
    """The shape as (out, in).

    Raises:
        InvalidArtifact: not two lengths.
    """
    if len(shape) != 2:
        raise InvalidArtifact(f"codec {codec!r} holds linears; {list(shape)} has not two lengths")
    return shape[0], shape[1]
