"""Training codebooks: products with looked-up weights, and what repair trains of a sketch module.

Source: SketchTune (arXiv 2410.06364, section 3).
Owns: the exact gradient. The dense weight exists while a product is computed and is looked up again
in the backward pass, so no step keeps one. Does not know: models, files, losses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs.base import Packed
from tsugiki.codecs.sketch import changes_of, pack
from tsugiki.codecs.sketch_cells import cells_of
from tsugiki.codecs.trainable import TrainableChange, hold, unit


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


def looked_up_product(x: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
    """See `LookedUpProduct`."""
    y: Tensor = LookedUpProduct.apply(x, codebooks, codes)  # type: ignore[no-untyped-call]
    return y


class SketchChange(TrainableChange):
    """x (u c)^T looked up: what is added to the differences that the file holds."""

    codes: Tensor
    _before: Tensor
    _unit: Tensor

    def __init__(self, packed: Packed, base: Tensor) -> None:
        """`base` [out, in]: the weight of the sketched base, which says what shares a cell."""
        super().__init__()
        self._packed = packed
        options = packed.options
        self._index = cells_of(base, options["bits"], options["groups"], packed.name)
        before, codes = changes_of(packed), self._index.indices().to(torch.uint8)
        hold(self, codes=codes, _before=before, _unit=unit(before))
        self.codebooks = nn.Parameter(torch.zeros_like(self._before))

    def forward(self, x: Tensor) -> Tensor:
        """See `TrainableChange.forward`."""
        return looked_up_product(x, self._unit * self.codebooks, self.codes)

    @torch.no_grad()
    def pack(self) -> Packed:
        """See `TrainableChange.pack`."""
        now = self._before + self._unit * self.codebooks
        return pack(now, self._index, self._packed.options["value_bits"], self._packed.name)
