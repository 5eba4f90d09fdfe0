"""The only place where variants meet the activations of a linear.

Owns: the base form for the rows it keeps, a rebuilt dense weight for the other rows, and what stays
compressed on top. Does not know: codecs' formats, requests, layers.
"""

import torch
from torch import Tensor

from tsugiki.model.base_form import BaseForm
from tsugiki.model.step_plan import Rebuilt, RebuiltRows
from tsugiki.model.variant_deltas import StepTables
from tsugiki_kernels.interface import KernelBackend


class VariantLinear:
    """A fused linear of the base, plus whatever the variants of a step change in it."""

    __slots__ = ("form", "name", "place")

    def __init__(self, name: str, place: int, form: BaseForm) -> None:
        self.name = name  # "layers.3.qkv"
        self.place = place  # in the tables of a step
        self.form = form

    def forward(
        self, x: Tensor, out: Tensor, rows: RebuiltRows, tables: StepTables, kernels: KernelBackend
    ) -> None:
        """[rows, in] -> [rows, out], activation dtype, every row under its own variant."""
        plan = rows.linear(self.name)
        if plan is None:
            self.form.matmul(x, out, None, kernels)
        elif plan.base_rows:
            self.form.matmul(x, out, plan.base_rows, kernels)
        for rebuilt in () if plan is None else plan.rebuilt:
            self._rebuild(x, out, rebuilt, kernels)
        tables.apply(x, out, self.place, kernels)

    def _rebuild(self, x: Tensor, out: Tensor, rebuilt: Rebuilt, kernels: KernelBackend) -> None:
        base, staged = self.form.dense(), rebuilt.linear.staged
        bias = self._bias(kernels.bias(staged, base.shape[0]), out.dtype)
        kernels.linear_rebuilt(x, base, bias, staged, out, rebuilt.spans)

    def _bias(self, change: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The base's bias plus the variant's, summed in float32."""
        if change is None:
            return self.form.bias
        total = change if self.form.bias is None else self.form.bias.float() + change
        return total.to(dtype)
