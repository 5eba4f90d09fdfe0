"""Norms, rotations, gates and gathered rows on the GPU: argument checks and launches.

Owns: which kernel of src/elementwise.cu computes what.
"""

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_column, check_strided, check_tensor
from tsugiki_kernels.cuda.arguments import DTYPE_NAMES, dtype_name
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Float32, Int32, Int64, Launcher
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Activation

_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


def rms_norm(
    launcher: Launcher,
    x: Tensor,
    weight: Tensor,
    index: Tensor | None,
    eps: float,
    out: Tensor,
    add: Tensor | None = None,
) -> None:
    """See KernelBackend.rms_norm. The values of `index` are trusted: nothing waits for the GPU.

    Raises:
        BadArgument: naming the tensor.
    """
    heads = x.shape[1] if x.ndim == 3 else 1
    rows, dim = x.shape[0], x.shape[-1]
    check_strided("x", x, ACTIVATIONS, x.shape)
    check_strided("out", out, (x.dtype,), x.shape)
    check_tensor("weight", weight, (x.dtype, torch.float32), (len(weight), dim))
    if index is not None:
        check_column("index", index, torch.int64, rows)
    if add is not None:
        check_strided("add", add, (x.dtype,), (rows, heads * dim))
    name = DTYPE_NAMES[x.dtype] if weight.dtype == x.dtype else f"{DTYPE_NAMES[x.dtype]}_f32"
    if x.numel():
        start(
            launcher,
            f"tsugiki_rms_norm_{name}",
            (
                *(x, *_row_and_head(x)),
                *(add, Int64(0 if add is None else add.stride(0))),
                *(out, *_row_and_head(out)),
                *(weight, index, Int32(dim), Float32(eps)),
            ),
            rows=rows,
            heads=heads,
        )


def rotate(launcher: Launcher, x: Tensor, cos_sin: Tensor) -> None:
    """See KernelBackend.rotate.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, heads, dim = x.shape
    check_strided("x", x, ACTIVATIONS, x.shape)
    check_tensor("cos_sin", cos_sin, (x.dtype,), (2, rows, dim))
    if dim % 2:
        raise BadArgument(f"x: expected heads of an even width, found {dim}")
    if x.numel():
        start(
            launcher,
            f"tsugiki_rotate_{DTYPE_NAMES[x.dtype]}",
            (x, *_row_and_head(x), cos_sin, Int32(heads), Int32(dim)),
            rows=rows,
        )


def gate(launcher: Launcher, gate_up: Tensor, activation: Activation, out: Tensor) -> None:
    """See KernelBackend.gate.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, width = out.shape
    check_strided("gate_up", gate_up, ACTIVATIONS, (rows, 2 * width))
    check_strided("out", out, (gate_up.dtype,), out.shape)
    if out.numel():
        start(
            launcher,
            f"tsugiki_gate_{DTYPE_NAMES[out.dtype]}",
            (
                *(gate_up, Int64(gate_up.stride(0)), out, Int64(out.stride(0))),
                *(Int32(width), Int32(_ACTIVATIONS[activation])),
            ),
            rows=rows,
            width=width,
        )


def gather(launcher: Launcher, x: Tensor, index: Tensor, out: Tensor) -> None:
    """See KernelBackend.gather. The values of `index` are trusted: nothing waits for the GPU.

    Raises:
        BadArgument: naming the tensor.
    """
    rows, width = len(index), x.shape[1]
    check_column("index", index, torch.int64, rows)
    check_strided("x", x, ACTIVATIONS, x.shape)
    check_tensor("out", out, (x.dtype,), (rows, width))
    if out.numel():
        start(
            launcher,
            f"tsugiki_gather_{dtype_name('x', x)}",
            (x, Int64(x.stride(0)), index, out, Int32(width)),
            rows=rows,
            width=width,
        )


def _row_and_head(x: Tensor) -> tuple[Int64, Int64]:
    return Int64(x.stride(0)), Int64(x.stride(1) if x.ndim == 3 else 0)
