"""A linear whose trained parameters are its codebooks (SketchTune, arXiv 2410.06364, section 3).

Owns: the exact gradient. The dense weight exists while a product is computed and is looked up again
in the backward pass, so no step keeps one. Does not know: models, files, losses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki_kernels.codebooks import CodebookWeight


class LookedUpProduct(torch.autograd.Function):
    """x W^T with W[r, c] = codebooks[r, c // width, codes[r, c]]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
        """x: [..., in]; codebooks: [out, groups, entries]; codes: uint8 [out, groups, width]."""
        ctx.save_for_backward(x, codebooks, codes)
        return F.linear(x, _dense(codebooks, codes, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Of an entry: the sum of the dense gradient over its cell."""
        (gradient,) = gradients
        x, codebooks, codes = ctx.saved_tensors
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ _dense(codebooks, codes, x.dtype)
        rows = gradient.flatten(0, -2).T @ x.flatten(0, -2)
        dense = rows.view(codes.shape).to(codebooks.dtype)
        return to_x, torch.zeros_like(codebooks).scatter_add_(2, codes.long(), dense), None


def _dense(codebooks: Tensor, codes: Tensor, dtype: torch.dtype) -> Tensor:
    return codebooks.to(dtype).gather(2, codes.long()).flatten(1)


class SketchedLinear(nn.Module):
    """A sketched linear of a transformers model; its bias, if any, stays as it is."""

    codes: Tensor
    stored: Tensor

    def __init__(self, weight: CodebookWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.index = weight.index
        self.register_buffer("codes", weight.index.indices().to(torch.uint8), persistent=False)
        self.register_buffer("stored", weight.codebooks.float(), persistent=False)
        self.codebooks = nn.Parameter(self.stored.clone())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = LookedUpProduct.apply(x, self.codebooks, self.codes)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def change(self) -> Tensor:
        """float32 [out, groups, entries]: what training added to the base's codebooks."""
        return self.codebooks.detach() - self.stored
