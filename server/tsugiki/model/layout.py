"""How a base's parameters are named in a checkpoint and fused in the decoder.

Owns: the canonical names of an architecture's parameters, `layout_of`. Does not know: tensors.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tsugiki.codecs.base import FusedPart, Layout
from tsugiki.model.architecture import Architecture
from tsugiki.model.checkpoint import EMBEDDING, LM_HEAD

FINAL_NORM = "model.norm.weight"


class LinearName(NamedTuple):
    """One fused linear and the checkpoint modules stacked into it, top to bottom."""

    fused: str
    parts: tuple[tuple[str, int], ...]  # (module name without ".weight", output rows)
    in_features: int
    bias: bool


def layer_linears(architecture: Architecture, layer: int) -> tuple[LinearName, ...]:
    """The four fused linears of a layer, in the order of computation."""
    a = architecture
    attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
    qkv = (
        (f"{attention}.q_proj", a.q_size),
        (f"{attention}.k_proj", a.kv_size),
        (f"{attention}.v_proj", a.kv_size),
    )
    gate_up = ((f"{mlp}.gate_proj", a.intermediate_size), (f"{mlp}.up_proj", a.intermediate_size))
    o, down = ((f"{attention}.o_proj", a.hidden_size),), ((f"{mlp}.down_proj", a.hidden_size),)
    return (
        LinearName(f"layers.{layer}.qkv", qkv, a.hidden_size, a.qkv_bias),
        LinearName(f"layers.{layer}.o", o, a.q_size, a.o_bias),
        LinearName(f"layers.{layer}.gate_up", gate_up, a.hidden_size, a.mlp_bias),
        LinearName(f"layers.{layer}.down", down, a.intermediate_size, a.mlp_bias),
    )


def layer_norms(architecture: Architecture, layer: int) -> dict[str, int]:
    """Norm weights of a layer: canonical name -> length."""
    a, prefix = architecture, f"model.layers.{layer}"
    names = ["input_layernorm", "post_attention_layernorm"]
    if a.sandwich_norms:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    norms = {f"{prefix}.{name}.weight": a.hidden_size for name in names}
    if a.qk_norm:
        norms |= {f"{prefix}.self_attn.{n}.weight": a.head_dim for n in ("q_norm", "k_norm")}
    return norms


def all_linears(architecture: Architecture) -> Iterator[LinearName]:
    """Every fused linear of the layers; lm_head apart, since it may be the embedding."""
    for layer in range(architecture.num_layers):
        yield from layer_linears(architecture, layer)


def layout_of(architecture: Architecture) -> Layout:
    """Every parameter that a variant may change, and where it lives in the decoder."""
    linears: dict[str, FusedPart] = {}
    biases: dict[str, str] = {}
    for linear in all_linears(architecture):
        offset = 0
        for module, rows in linear.parts:
            weight = f"{module}.weight"
            linears[weight] = FusedPart(linear.fused, offset, (rows, linear.in_features))
            offset += rows
            if linear.bias:
                biases[f"{module}.bias"] = weight
    embedding_shape = (architecture.vocab_size, architecture.hidden_size)
    allowed = frozenset(linears) if architecture.bias_configurable else frozenset(biases.values())
    linears[LM_HEAD] = FusedPart("lm_head", 0, embedding_shape)
    vectors = {FINAL_NORM: architecture.hidden_size}
    for layer in range(architecture.num_layers):
        vectors |= layer_norms(architecture, layer)
    return Layout(
        linears=linears,
        biases=biases,
        vectors=vectors,
        embedding=EMBEDDING,
        embedding_shape=embedding_shape,
        tied=architecture.tied,
        bias_allowed=allowed,
        vectors_in_float32=architecture.norm_plus_one,
    )
