"""What the linears of a layer are given, weighed by what an error of their outputs costs.

Owns: the rows whose mean of x x^T says which errors of a weight cost most. Does not know: texts,
models beyond one decoder layer, how a linear is compressed.

Three kinds of linears, by what happens to their outputs:
- values are averaged by attention: the error of a value at the token that most queries look at (the
  first one, as a rule) reaches all of them, so the rows of v_proj are averages too;
- what o_proj and down_proj write is normalised by whatever reads it: a row counts by the inverse of
  the residual stream behind the layer, else the few tokens with massive activations are all that is
  seen;
- all others: their inputs as they are.
"""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

VALUES = "v_proj"
WRITING = ("o_proj", "down_proj")


class LayerInputs:
    """Sees the linears of a decoder layer while one sequence after the other runs through it.

    The layer's attention must give its probabilities away ("eager" in transformers).
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._inputs: dict[str, Tensor] = {}  # weight name -> [1, tokens, in]
        self._probabilities = torch.empty(0)  # [heads, queries, keys]
        self._handles: list[Any] = []

    def __enter__(self) -> "LayerInputs":
        for name, module in self._layer.named_modules():
            if isinstance(module, nn.Linear):
                see = module.register_forward_pre_hook(self._seen(f"{name}.weight"))
                self._handles.append(see)
            if hasattr(module, VALUES):
                self._handles.append(module.register_forward_hook(self._attended))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def weighed(self, output: Tensor) -> dict[tuple[str, ...], Tensor]:
        """Rows [n, in] of the sequence that ran last, by the names of the weights that they are
        for. `output` [tokens, hidden]: the residual stream behind the layer."""
        scale = output.square().mean(1, keepdim=True).rsqrt()
        found: dict[tuple[str, ...], Tensor] = {}
        shared: dict[int, list[str]] = {}
        for name, x in self._inputs.items():
            if VALUES in name:
                found[name,] = self._averaged(x[0])
            elif any(kind in name for kind in WRITING):
                found[name,] = x[0] * scale
            else:
                shared.setdefault(id(x), []).append(name)
        return found | {tuple(names): self._inputs[names[0]][0] for names in shared.values()}

    def _averaged(self, x: Tensor) -> Tensor:
        """What the queries of all heads see: of each head as many queries as make as many rows as
        there are tokens."""
        heads = len(self._probabilities)
        return (self._probabilities[:, ::heads] @ x).flatten(0, 1)

    def _seen(self, name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs[name] = inputs[0]

        return see

    def _attended(self, module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        self._probabilities = output[1][0]
