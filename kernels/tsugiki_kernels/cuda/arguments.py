"""What launches of several operations demand of their tensors.

Owns: names of dtypes in kernel names, checks of a call that applies deltas. Shapes, ranges and
devices alone: check.py and launcher.py hold the rest, kernels.py how many blocks are started.
"""

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_strided, check_tensor
from tsugiki_kernels.cuda.work_list import SEGMENT_WORDS, ResidentPart
from tsugiki_kernels.errors import BadArgument

DTYPE_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def dtype_name(name: str, tensor: Tensor) -> str:
    """The dtype as kernel names have it.

    Raises:
        BadArgument: a dtype that no kernel is made for.
    """
    if tensor.dtype not in ACTIVATIONS:
        raise BadArgument(f"{name}: expected float32, bfloat16 or float16, found {tensor.dtype}")
    return DTYPE_NAMES[tensor.dtype]


def out_name(x: Tensor, out: Tensor) -> str:
    """Both dtypes of a call that reads x and adds into out, as kernel names have them."""
    own, other = dtype_name("x", x), dtype_name("out", out)
    return own if own == other else f"{own}_{other}"


def check_apply(x: Tensor, out: Tensor, segments: Tensor, inputs: int, width: int) -> None:
    """The operands of a call that adds deltas of `inputs` inputs into `width` columns of out.

    Raises:
        BadArgument: naming the argument.
    """
    check_strided("x", x, ACTIVATIONS, (len(x), inputs))
    if out.ndim != 2 or out.shape[1] < width:
        raise BadArgument(f"out: expected at least {width} columns, found {tuple(out.shape)}")
    check_strided("out", out, (x.dtype, torch.float32), (len(x), out.shape[1]))
    check_tensor("segments", segments, (torch.int64,), (len(segments), SEGMENT_WORDS))
    if not len(segments):
        raise BadArgument("segments: expected at least the entry of the totals, found none")


def check_rebuild(base: Tensor, part: ResidentPart, out: Tensor) -> None:
    """The operands of a call that rebuilds the rows of one part of a fused weight.

    Raises:
        BadArgument: naming the argument.
    """
    if base.ndim != 2 or base.shape[1] != part.inputs or len(base) < part.width:
        raise BadArgument(
            f"base: expected [at least {part.width}, {part.inputs}], found {tuple(base.shape)}"
        )
    check_tensor("base", base, ACTIVATIONS, base.shape)
    check_tensor("out", out, (base.dtype,), base.shape)


def check_scratch(scratch: Tensor, values: int) -> None:
    """float32, at least so many values in a row.

    Raises:
        BadArgument: it is not.
    """
    if scratch.ndim != 1 or len(scratch) < values:
        raise BadArgument(
            f"scratch: expected at least {values} values, found {tuple(scratch.shape)}"
        )
    check_tensor("scratch", scratch, (torch.float32,), scratch.shape)
