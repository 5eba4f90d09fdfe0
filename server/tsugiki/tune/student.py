"""A variant as a transformers model in which only what its file stores cheaply is trained.

Owns: the trainable view of a variant (a factor for each group of rows, biases, norms), and packing
the trained values again. It starts out exactly as the file. Does not know: losses, data, schedules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Packed
from tsugiki.codecs.retune import RETUNABLE
from tsugiki.compress.hf_model import model_of
from tsugiki.compress.reconstruct import Reconstruction
from tsugiki.errors import Unsupported

VECTOR_MODES = ("replace", "delta")


class RetunedLinear(nn.Module):
    """y = x W^T + b + rho (x D^T) + u beta: W and b of the variant, D its stored change of W.

    Trained are rho (one for each group of rows) and beta (one for each row, in units u of the
    correction's own size, so that one learning rate fits every layer).
    """

    def __init__(self, linear: nn.Linear, packed: Packed) -> None:
        super().__init__()
        codec, retune = CODECS[packed.codec], RETUNABLE[packed.codec]
        self.weight = linear.weight.detach()
        self.own_bias = None if linear.bias is None else linear.bias.detach()
        change = codec.effective(torch.zeros(packed.shape), packed).weight
        self.change = change.to(self.weight.dtype)
        self.rows_per_factor = retune.rows_per_factor(packed)
        self.rho = nn.Parameter(torch.zeros(-(-packed.shape[0] // self.rows_per_factor)))
        self.stored_bias = retune.bias(packed)
        if self.stored_bias is not None:
            self.unit = self.stored_bias.square().mean().sqrt().clamp_min(1e-6)
            self.beta = nn.Parameter(torch.zeros(packed.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        factor = self.rho.repeat_interleave(self.rows_per_factor)[: self.weight.shape[0]]
        y = F.linear(x, self.weight, self.own_bias)
        y = y + F.linear(x, self.change) * factor.to(x.dtype)
        return y if self.stored_bias is None else y + (self.unit * self.beta).to(x.dtype)

    @torch.no_grad()
    def packed(self, before: Packed) -> Packed:
        """What is stored now."""
        bias = None if self.stored_bias is None else self.stored_bias + self.unit * self.beta
        return RETUNABLE[before.codec].retuned(before, 1 + self.rho, bias)


@dataclass(frozen=True, slots=True)
class Student:
    """The model, and which of its parameters stand for which part of the file."""

    model: Any
    linears: Mapping[str, RetunedLinear]  # by weight name
    norms: Mapping[str, nn.Parameter]

    def groups(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """("factors" | "biases" | "norms", parameters): each kind has its own learning rate."""
        yield "factors", [linear.rho for linear in self.linears.values()]
        biased = [linear for linear in self.linears.values() if linear.stored_bias is not None]
        yield "biases", [linear.beta for linear in biased]
        yield "norms", list(self.norms.values())

    def packed(
        self, modules: Mapping[str, Packed], base: Mapping[str, Tensor]
    ) -> dict[str, Packed]:
        """All modules of the file with the trained values; `base`: norm weights by name."""
        found = dict(modules)
        found |= {name: linear.packed(modules[name]) for name, linear in self.linears.items()}
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
        if packed.codec in RETUNABLE and isinstance(
            place := places.get(name.removesuffix(".weight")), nn.Linear
        ):
            linears[name] = RetunedLinear(place, packed)
            parent, _, leaf = name.removesuffix(".weight").rpartition(".")
            setattr(places[parent], leaf, linears[name])
    if not linears:
        raise Unsupported(
            f"no module of this file can be repaired in place; codecs that can: "
            f"{', '.join(RETUNABLE)}"
        )
    return Student(model, linears, _trained_norms(places, variant.modules))


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
