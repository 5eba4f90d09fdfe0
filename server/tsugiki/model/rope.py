"""Rotary positions: which frequencies a layer uses, and how far they turn.

Owns: `Rope`, its reading from a transformers config (transformers computes scaled frequencies), the
cosine and sine of a step's positions. Does not know: layers, caches, the rotation (a kernel).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tsugiki.errors import UnsupportedModel

# dynamic and longrope change frequencies with the length of the sequence: with a cache of rotated
# keys a request would depend on how it was chunked
SUPPORTED_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True, order=True)
class Rope:
    """Frequencies of one kind of layer; plain floats, so that an Architecture compares by value."""

    inv_freq: tuple[float, ...]  # head_dim / 2 float32 values
    scaling: float  # multiplies cosine and sine (yarn's attention factor)


def read_rope(config: PreTrainedConfig, layer_type: str) -> Rope:
    """The rope of a layer type ("full_attention", "sliding_attention").

    Raises:
        UnsupportedModel: a rope type or a partial rotation that is not computed here.
    """
    nested = layer_type in config.rope_parameters
    parameters: dict[str, Any] = (
        config.rope_parameters[layer_type] if nested else config.rope_parameters
    )
    kind = parameters.get("rope_type", "default")
    if kind not in SUPPORTED_TYPES:
        raise UnsupportedModel(
            f"rope type {kind!r} is not supported; supported: {', '.join(SUPPORTED_TYPES)}"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("partial_rotary_factor below 1 is not supported")
    if kind == "default":
        return Rope(_default_frequencies(config, parameters["rope_theta"]), 1.0)
    init = ROPE_INIT_FUNCTIONS[kind]
    inv_freq, scaling = init(config, "cpu", layer_type=layer_type if nested else None)
    return Rope(tuple(inv_freq.tolist()), float(scaling))


def _default_frequencies(config: PreTrainedConfig, theta: float) -> tuple[float, ...]:
    """theta^(-2i / head_dim), in float32 as every implementation computes it (RoFormer, eq. 15)."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequencies: list[float] = (1.0 / (theta**exponents)).tolist()
    return tuple(frequencies)


def cos_sin(inv_freq: Tensor, scaling: float, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosine and sine of every row's position: [2, rows, head_dim] in the activation dtype.

    inv_freq: float32 [head_dim / 2]; positions: int64 [rows]. Angles are computed in float32. The
    sine's first half is negated, which is what `KernelBackend.rotate` expects.
    """
    angles = positions[:, None].float() * inv_freq
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).to(dtype)
