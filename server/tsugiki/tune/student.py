"""A variant as a transformers model in which only what its file stores cheaply is trained.

Owns: the trainable view of a variant (what each codec offers for its linears, and norms), and
packing the trained values again. It starts out exactly as the file. Does not know: losses, data,
schedules, what codecs offer (codecs/retune.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Packed
from tsugiki.codecs.retune import TRAINABLE, TRAINABLE_ON_BASE, trainable
from tsugiki.codecs.trainable import TrainableChange
from tsugiki.compress.hf_model import model_of
from tsugiki.compress.reconstruct import Reconstruction
from tsugiki.errors import Unsupported

VECTOR_MODES = ("replace", "delta")
NORMS = "norms"


class RetunedLinear(nn.Module):
    """The linear of the variant, and beside it what training adds."""

    weight: Tensor
    own_bias: Tensor | None

    def __init__(self, linear: nn.Linear, change: TrainableChange) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("weight", linear.weight.detach(), persistent=False)
        self.register_buffer("own_bias", bias, persistent=False)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = F.linear(x, self.weight, self.own_bias) + self.change(x)
        return y


@dataclass(frozen=True, slots=True)
class Student:
    """The model, and which of its parameters stand for which part of the file."""

    model: Any
    linears: Mapping[str, RetunedLinear]  # by weight name
    norms: Mapping[str, nn.Parameter]

    def kinds(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by kind, then by name: each kind has its own learning rate."""
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, linear in self.linears.items():
            for kind, parameter in linear.change.kinds().items():
                found.setdefault(kind, {})[f"{name}/{kind}"] = parameter
        return {**found, NORMS: dict(self.norms)} if self.norms else found

    def packed(
        self, modules: Mapping[str, Packed], base: Mapping[str, Tensor]
    ) -> dict[str, Packed]:
        """All modules of the file with the trained values; `base`: norm weights by name."""
        found = dict(modules)
        found |= {name: linear.change.pack() for name, linear in self.linears.items()}
        for name, weight in self.norms.items():
            kept = {key: modules[name].options[key] for key in ("mode", "dtype")}
            options = {**kept, "name": name}
            dense = CODECS[modules[name].codec]
            found[name] = dense.compress(base[name].float(), weight.detach().float(), None, options)
        return found


def make_student(variant: Reconstruction, dtype: torch.dtype) -> Student:
    """A student in this dtype; norms and trained values are float32.

    Raises:
        Unsupported: the file holds nothing that can be trained in place.
    """
    model = model_of(variant.config(), variant.tensors(), dtype).train()
    model.requires_grad_(False)
    places = dict(model.named_modules())
    linears = {}
    for name, packed in variant.modules.items():
        place = places.get(name.removesuffix(".weight"))
        if not isinstance(place, nn.Linear):
            continue
        change = trainable(packed, partial(_backbone, variant, name), dtype)
        if change is not None:
            linears[name] = RetunedLinear(place, change)
            parent, _, leaf = name.removesuffix(".weight").rpartition(".")
            setattr(places[parent], leaf, linears[name])
    if not linears:
        raise Unsupported(
            f"no module of this file can be repaired in place; codecs that can: "
            f"{', '.join((*TRAINABLE, *TRAINABLE_ON_BASE))}"
        )
    return Student(model, linears, _trained_norms(places, variant.modules))


def _backbone(variant: Reconstruction, name: str) -> Tensor:
    return variant.base.checkpoint.backbone(name).float()


def _trained_norms(
    places: Mapping[str, nn.Module], modules: Mapping[str, Packed]
) -> dict[str, nn.Parameter]:
    """The norms that the file changes, as float32 parameters of the model."""
    norms = {}
    for name, packed in modules.items():
        place = places.get(name.removesuffix(".weight"))
        stored = len(packed.shape) == 1 and packed.options.get("mode") in VECTOR_MODES
        if place is not None and stored and not isinstance(place, nn.Linear):
            norms[name] = nn.Parameter(place.weight.detach().float())  # type: ignore[operator]
            place.weight = norms[name]
            place.register_forward_hook(_in_dtype_of_input)
    return norms


def _in_dtype_of_input(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A float32 weight promotes the product; the layer behind expects the activation dtype."""
    return output.to(inputs[0].dtype)
