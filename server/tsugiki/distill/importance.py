"""Which layers of a decoder matter least.

Owns: two published orders. Does not know: how a shallower model is written (prune.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import batches


def deepest_first(layers: int) -> list[int]:
    """Layers in the order in which they go when nothing is known of the data: from the one before
    the last towards the input (arXiv 2403.17887, section 4.4)."""
    return [*range(layers - 2, -1, -1), layers - 1]


def by_influence(influence: Sequence[float]) -> list[int]:
    """Layers from the least to the most influential."""
    return sorted(range(len(influence)), key=influence.__getitem__)


@torch.inference_mode()
def block_influence(model: Any, dialogues: Sequence[Dialogue]) -> list[float]:
    """1 - E[cos(input, output)] of each decoder layer over all tokens (ShortGPT, arXiv 2403.03853,
    section 2.2): a layer that hardly turns its input is hardly missed."""
    layers = model.base_model.layers
    sums = torch.zeros(len(layers), dtype=torch.float64)
    tokens = 0
    for batch in batches(dialogues):
        ids, real = _padded(batch)
        with _turns(layers, real) as turns:
            model.base_model(input_ids=ids, attention_mask=real.long(), use_cache=False)
        sums += torch.tensor(turns, dtype=torch.float64)
        tokens += int(real.sum())
    found: list[float] = (sums / tokens).tolist()
    return found


@contextmanager
def _turns(layers: Any, real: Tensor) -> Iterator[list[float]]:
    """While the model runs: sum of 1 - cos(input, output) of each layer over real tokens."""
    found = [0.0] * len(layers)

    def hook(index: int) -> Any:
        def look(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = F.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            found[index] = float((1 - cosine)[real].double().sum())

        return look

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _padded(batch: Sequence[Dialogue]) -> tuple[Tensor, Tensor]:
    """Token ids [n, longest] and which of them are no padding."""
    longest = max(len(dialogue.ids) for dialogue in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for row, dialogue in enumerate(batch):
        ids[row, : len(dialogue.ids)] = torch.tensor(dialogue.ids)
        real[row, : len(dialogue.ids)] = True
    return ids, real
