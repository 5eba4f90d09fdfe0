"""The only place where variants meet the activations of a linear.

Owns: carrying out a `LinearPlan`: the base form for the rows it keeps, fused deltas on top of it, a
rebuilt dense weight for the other rows. Does not know: codecs' formats, requests, layers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.model.base_form import BaseForm
from tsugiki.model.step_plan import LinearPlan, Rebuilt
from tsugiki_kernels.interface import KernelBackend, Span


class Scratch:
    """One buffer that all linears share for their rebuilt weight, as large as the largest."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def like(self, weight: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of the weight's shape, dtype and device."""
        if self._buffer is None or self._buffer.numel() < weight.numel():
            self._buffer = torch.empty(weight.numel(), dtype=weight.dtype, device=weight.device)
        return self._buffer[: weight.numel()].view(weight.shape)


class VariantLinear:
    """A fused linear of the base, plus whatever the variants of a step change in it."""

    __slots__ = ("_kernels", "_scratch", "form", "name")

    def __init__(self, name: str, form: BaseForm, kernels: KernelBackend, scratch: Scratch) -> None:
        self.name = name  # "layers.3.qkv"
        self.form = form
        self._kernels = kernels
        self._scratch = scratch

    def forward(self, x: Tensor, plan: LinearPlan | None) -> Tensor:
        """[rows, in] -> [rows, out], activation dtype, every row under its own variant."""
        if plan is None:
            return self.form.matmul(x)
        out = self._base(x, plan.base_rows)
        for rebuilt in plan.rebuilt:
            self._rebuild(x, out, rebuilt)
        for group in plan.fused:
            group.codec.apply(x, out, group.staged, group.spans, self._kernels)
        return out

    def _base(self, x: Tensor, runs: Sequence[Span]) -> Tensor:
        """The base's output for these runs of rows; the other rows are left uninitialised.

        Several runs are gathered first, so that the weight is read once.
        """
        rows = x.shape[0]
        if list(runs) == [(0, rows)]:
            return self.form.matmul(x)
        out = x.new_empty(rows, self.form.shape[0])
        if len(runs) == 1:
            start, stop = runs[0]
            out[start:stop] = self.form.matmul(x[start:stop])
        elif runs:
            kept = torch.cat([torch.arange(a, b, device=x.device) for a, b in runs])
            out[kept] = self.form.matmul(x[kept])
        return out

    def _rebuild(self, x: Tensor, out: Tensor, rebuilt: Rebuilt) -> None:
        base, staged = self.form.dense(), rebuilt.linear.staged
        weight = self._scratch.like(base)
        self._kernels.reconstruct(base, staged, weight)
        bias = self._bias(self._kernels.bias(staged, base.shape[0]), out.dtype)
        for start, stop in rebuilt.spans:
            out[start:stop] = F.linear(x[start:stop], weight, bias)

    def _bias(self, change: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The base's bias plus the variant's, summed in float32."""
        if change is None:
            return self.form.bias
        total = change if self.form.bias is None else self.form.bias.float() + change
        return total.to(dtype)
