"""Multiplications and additions of a training token, to hold measured times against.

Owns: the count: linears of the decoder alone, which are nearly all of it (attention scores and the
output projection, taken at answer tokens only, are left out). Does not know: how anything is run.
"""

from typing import Any

from torch import nn


def training_operations(student: Any, teacher: Any | None) -> float:
    """Floating-point operations of one token: a forward pass is 2 for each weight, the gradient of
    what goes in 2 more, the gradient of a weight 2 for each that is trained."""
    weights, trained = linear_weights(student)
    forward = 0 if teacher is None else sum(linear_weights(teacher)[:1])
    return 2.0 * (forward + 2 * weights + trained)


def linear_weights(model: Any) -> tuple[int, int]:
    """Weights of the decoder's linears, LoRA branches included, and those of them that are
    trained."""
    places = [m for m in model.base_model.modules() if isinstance(m, nn.Linear)]
    sizes = [(place.weight.numel(), place.weight.requires_grad) for place in places]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
