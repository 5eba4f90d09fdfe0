"""Dense linears on the GPU: torch's matrix products, which are cuBLAS's.

Owns: where the bias and the one rounding happen. Accumulates in float32 (tensor cores do); a result
that is wanted in float32 is never rounded to less. cuBLAS may order a row's sum by the number of
rows: 16-bit results of a row alone and in a batch agree to a rounding, not to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.check import check_linear
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, spans: Sequence[Span]
) -> None:
    """What KernelBackend.linear demands.

    Raises:
        BadArgument: naming the argument.
    """
    check_linear(x, weight, bias, out, spans)
    if x.dtype != weight.dtype:
        raise BadArgument(f"x: expected {weight.dtype} as weight has, found {x.dtype}")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, spans: Sequence[Span]
) -> None:
    """See KernelBackend.linear; arguments are checked already."""
    for start, stop in spans:
        if start < stop:
            _linear(x[start:stop], weight, bias, out[start:stop])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Rounded once: by the product itself where nothing is added in float32."""
    if out.dtype == x.dtype and bias is None:
        torch.mm(x, weight.T, out=out)
    elif out.dtype == x.dtype and bias is not None and bias.dtype == x.dtype:
        torch.addmm(bias, x, weight.T, out=out)
    else:
        product = _in_float32(x, weight)
        out.copy_(product if bias is None else product + bias.float())


def _in_float32(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype == torch.float32 or not x.is_cuda:
        return torch.nn.functional.linear(x.float(), weight.float())
    return torch.mm(x, weight.T, out_dtype=torch.float32)
