"""E[x x^T] of the inputs of linears, for peers that round by calibration.

Owns: collecting while calibration runs. Does not know: what it is used for.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Grams:
    """Sums of x x^T, one for each distinct input: linears that read the same tensor share it."""

    def __init__(self, weights: Collection[str]) -> None:
        self._weights = weights
        self._sums: dict[str, Tensor] = {}  # by the first linear that reads the input
        self._counts: dict[str, int] = {}
        self._owner: dict[str, str] = {}
        self._last: tuple[Tensor | None, str] = (None, "")

    def of(self, weight: str) -> Tensor | None:
        """float32 [in, in]: E[x x^T] over all positions but the first of each dialogue; None where
        no linear of this name ran."""
        owner = self._owner.get(weight)
        return None if owner is None else self._sums[owner] / self._counts[owner]

    @contextmanager
    def collected(self, model: torch.nn.Module) -> Iterator[None]:
        """Sum up what a transformers model computes meanwhile."""
        handles = [
            module.register_forward_pre_hook(self._hook(f"{name}.weight"))
            for name, module in model.named_modules()
            if f"{name}.weight" in self._weights
        ]
        try:
            yield
        finally:
            self._last = (None, "")
            for handle in handles:
                handle.remove()

    def _hook(self, weight: str) -> Any:
        def see(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen, owner = self._last
            if inputs[0] is seen:
                self._owner[weight] = owner
            else:
                self._last = (inputs[0], weight)
                self._add(weight, inputs[0][0, 1:].float())

        return see

    def _add(self, weight: str, rows: Tensor) -> None:
        self._owner[weight] = weight
        self._sums[weight] = self._sums.get(weight, torch.zeros(())) + rows.T @ rows
        self._counts[weight] = self._counts.get(weight, 0) + len(rows)
