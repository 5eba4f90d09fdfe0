"""How much noise in each matrix of a delta costs, and how bytes are best shared out for it.

Owns: the estimate and the rule. Does not know: codecs, options, files.

Noise of a seeded mask is independent of the data and of the delta's other entries: its variance is
alpha D_ij^2 up to a factor that all matrices share. To second order it costs

    KL = 1/2 sum_ij F_ij Var_ij,    F_ij = E[(d log p(y | x) / d W_ij)^2],  y drawn from the model,

so a matrix costs alpha c, c = 1/2 sum_ij F_ij D_ij^2, and takes n / alpha bytes. The least cost for
a given sum of bytes has alpha in proportion to sqrt(n / c): see `shares`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import logits_at_answers

SEED = 0  # of the drawn answers
MOST = 8.0  # times the usual share, and as little as 1 / MOST of it
STEPS = 4  # of a doubling: shares this far apart are told apart


class _Costs:
    """Running sums of (g D)^2; a gradient is gone as soon as it is counted."""

    def __init__(self, names: Iterable[str], base: Callable[[str], Tensor]) -> None:
        self.sums = dict.fromkeys(names, 0.0)
        self._base = base

    @contextmanager
    def counted(self, model: Any) -> Iterator[None]:
        """Gradients of the named parameters alone, while this lasts."""
        named = dict(model.named_parameters())
        with ExitStack() as stack:
            for name, parameter in named.items():
                parameter.requires_grad_(name in self.sums)
            for name in self.sums:
                handle = named[name].register_post_accumulate_grad_hook(self._hook(name))
                stack.callback(handle.remove)
            yield

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def count(parameter: Tensor) -> None:
            if parameter.grad is not None:
                before = self._base(name).float().to(parameter.device)
                delta = parameter.detach()[: len(before)] - before
                self.sums[name] += float((parameter.grad[: len(before)] * delta).square().sum())
                parameter.grad = None

        return count


def noise_costs(
    model: Any, dialogues: Iterable[Dialogue], names: Iterable[str], base: Callable[[str], Tensor]
) -> dict[str, float]:
    """KL per answer token for noise of variance D_ij^2 in one matrix, by name.

    `model`: the fine-tune as a transformers model, float32; `base(name)`: the base's parameter,
    whose rows are the first of the fine-tune's.
    """
    costs, tokens = _Costs(names, base), 0
    generator = torch.Generator().manual_seed(SEED)
    with torch.enable_grad(), costs.counted(model):
        for dialogue in dialogues:
            logs = logits_at_answers(model, [dialogue.ids], [dialogue.start]).log_softmax(-1)
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator)
            # scores of different tokens are independent and have mean 0: squares of sums add up
            logs.gather(1, drawn.to(logs.device)).sum().backward()  # type: ignore[no-untyped-call]
            tokens += dialogue.answer_length
    return {name: total / (2 * max(1, tokens)) for name, total in costs.sums.items()}


def shares(costs: Mapping[str, float], parameters: Mapping[str, int]) -> dict[str, float]:
    """Bytes for each parameter of a matrix relative to the usual, by name: sqrt(c / n), scaled so
    that the whole takes about as much as with 1 everywhere; at most MOST, in STEPS to a doubling.
    """
    total = sum(parameters.values())
    roots = {name: math.sqrt(max(0.0, costs[name]) / count) for name, count in parameters.items()}
    mean = sum(roots[name] * count for name, count in parameters.items()) / total
    if mean <= 0:
        return dict.fromkeys(parameters, 1.0)
    return {name: _stepped(root / mean) for name, root in roots.items()}


def _stepped(share: float) -> float:
    bounded = min(MOST, max(1 / MOST, share))
    return float(2.0 ** (round(STEPS * math.log2(bounded)) / STEPS))
