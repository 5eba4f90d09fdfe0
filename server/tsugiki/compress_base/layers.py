"""Calibration text through a model, one layer at a time: Gram matrices of the linears' inputs.

Owns: the hidden states of the text between two layers, and running a layer. A layer is seen with
the layers before it already compressed, as GPTQ does it, so that it makes up for them. Does not
know: how a linear is compressed.

Memory is that of the model, of the hidden states of the text, and of one layer's Gram matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress_base.layer_inputs import LayerInputs
from tsugiki.compress_base.sensitivity import Gram


class LayerWalk:
    """A transformers model whose layers are visited in order."""

    @torch.no_grad()
    def __init__(self, model: Any, ids: Tensor) -> None:
        """`ids`: int64 [sequences, length]."""
        model.set_attn_implementation("eager")  # layer_inputs.py looks at its probabilities
        self._layers: list[Any] = list(model.base_model.layers)
        self._calls: list[dict[str, Any]] = []
        self._hidden: list[Tensor] = []
        with self._recorded(model):
            model(ids[:1], use_cache=False, logits_to_keep=1)
        first = self._layers[0].register_forward_pre_hook(self._stop, with_kwargs=True)
        for row in ids:
            try:
                model(row[None], use_cache=False, logits_to_keep=1)
            except _Stopped:
                continue
        first.remove()

    @torch.no_grad()
    def grams(self, layer: int) -> dict[str, Tensor]:
        """Weight name below the layer ("self_attn.q_proj.weight") -> mean of x x^T of its rows
        (layer_inputs.py)."""
        found: dict[tuple[str, ...], Gram] = {}
        with LayerInputs(self._layers[layer]) as inputs:
            for hidden in self._hidden:
                self._run(layer, hidden)
                for names, rows in inputs.rows().items():
                    found.setdefault(names, Gram(rows.shape[1], rows.device)).add(rows)
        means = {names: gram.mean() for names, gram in found.items()}
        return {name: mean for names, mean in means.items() for name in names}

    @torch.no_grad()
    def replace(self, layer: int, name: str, weight: Tensor) -> None:
        """Give a linear of a layer another weight."""
        self._layers[layer].get_parameter(name).copy_(weight)

    @torch.no_grad()
    def advance(self, layer: int) -> None:
        """Past this layer, with the weights that it has now."""
        self._hidden = [self._run(layer, hidden) for hidden in self._hidden]

    def _run(self, layer: int, hidden: Tensor) -> Tensor:
        found = self._layers[layer](hidden, **self._calls[layer])
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output

    @contextmanager
    def _recorded(self, model: Any) -> Iterator[None]:
        """Keep what each layer is called with beside the hidden state: masks, rotations."""

        def record(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self._calls.append({k: v for k, v in options.items() if k != "hidden_states"})

        handles = [
            layer.register_forward_pre_hook(record, with_kwargs=True) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stop(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._hidden.append(inputs[0] if inputs else options["hidden_states"])
        raise _Stopped


class _Stopped(Exception):
    """The hidden state before the first layer is known."""
