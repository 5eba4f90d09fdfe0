"""A linear whose trained parameters are its codebooks (SketchTune, arXiv 2410.06364, section 3).

Owns: the module. Does not know: the gradient (codecs/sketch_retune.py), models, files, losses.
"""

import torch
from torch import Tensor, nn

from tsugiki.codecs.sketch_retune import looked_up_product
from tsugiki_kernels.codebooks import CodebookWeight


class SketchedLinear(nn.Module):
    """A sketched linear of a transformers model; its bias, if any, stays as it is."""

    codes: Tensor
    stored: Tensor
    bias: Tensor | None

    def __init__(self, weight: CodebookWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.index = weight.index
        self.register_buffer("codes", weight.index.indices().to(torch.uint8), persistent=False)
        self.register_buffer("stored", weight.codebooks.float(), persistent=False)
        self.codebooks = nn.Parameter(self.stored.clone())
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = looked_up_product(x, self.codebooks, self.codes)
        return y if self.bias is None else y + self.bias

    def change(self) -> Tensor:
        """float32 [out, groups, entries]: what training added to the base's codebooks."""
        return self.codebooks.detach() - self.stored
