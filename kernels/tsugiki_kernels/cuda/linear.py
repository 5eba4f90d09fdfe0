"""Dense linears on the GPU: torch's matrix products, which are cuBLAS's.

Owns: where the bias and the one rounding happen. Accumulates in float32 (tensor cores do); a result
that is wanted in float32 is never rounded to less. cuBLAS may order a row's sum by the number of
rows: 16-bit results of a row alone and in a batch agree to a rounding, not to the bit.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
            out[start:stop] = _product(x[start:stop], weight, bias, out.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rounded once: by the product itself where nothing is added in float32."""
    if dtype == x.dtype and (bias is None or bias.dtype == x.dtype):
        return F.linear(x, weight, bias)
    product = _in_float32(x, weight)
    return product if bias is None else product + bias.float()


def _in_float32(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype == torch.float32 or not x.is_cuda:
        return F.linear(x.float(), weight.float())
    return torch.mm(x, weight.T, out_dtype=torch.float32)
