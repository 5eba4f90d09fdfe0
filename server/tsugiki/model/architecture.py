"""The shape of a base, read from its config.json: everything the one decoder is driven by.

Owns: `Architecture` and the refusal of families and features that the decoder does not compute.
Does not know: weights, tensors, devices. transformers' own config classes supply the defaults of a
family and bring old rope fields into today's form, so the two cannot drift apart.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tsugiki.errors import UnsupportedModel
from tsugiki.model.rope import Rope, read_rope

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_pytorch_tanh")
SUPPORTED = "Llama, Mistral, Qwen2/2.5, Qwen3 (dense), Gemma 3 (text)"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One decoder-only transformer with RMS norms, rotary positions and a gated MLP."""

    family: str  # config.json's model_type
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: Activation
    attention_scale: float  # multiplies q k^T
    windows: tuple[int | None, ...]  # per layer; None: full attention
    ropes: tuple[Rope, ...]  # per layer
    max_position_embeddings: int
    tied: bool  # lm_head reads the input embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    bias_configurable: bool = False  # the family's config can switch biases on (Llama)
    qk_norm: bool = False  # RMS norm over each head of q and k, before the rotation
    sandwich_norms: bool = False  # a second norm after attention and after the MLP (Gemma)
    norm_plus_one: bool = False  # norms multiply by 1 + weight, in float32 (Gemma)
    embed_scale: float | None = None  # multiplies the looked-up embedding, in its dtype (Gemma)

    @property
    def q_size(self) -> int:
        """Output rows of q_proj."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Output rows of k_proj and of v_proj."""
        return self.num_kv_heads * self.head_dim


def read_architecture(raw: dict[str, Any]) -> Architecture:
    """The architecture that a raw config.json describes.

    Raises:
        UnsupportedModel: another family, or a feature of a family that is not computed here; the
            message names it.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UnsupportedModel(f"model_type {family!r} is not supported; supported: {SUPPORTED}")
    config_class, class_name, read = FAMILIES[family]
    _refuse_common(raw, class_name)
    try:
        return read(config_class.from_dict(deepcopy(raw)))  # from_dict fills in nested dictionaries
    except (ArithmeticError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UnsupportedModel(
            f"config.json is no valid {family} configuration: {reason}"
        ) from error


def _refuse_common(raw: dict[str, Any], class_name: str) -> None:
    classes = raw.get("architectures") or [class_name]
    if class_name not in classes:
        raise UnsupportedModel(f"architecture {classes[0]!r} is not supported; use {class_name}")
    if raw.get("quantization_config"):
        raise UnsupportedModel(
            "quantization_config is set; a base must be stored in bfloat16, float16 or float32"
        )
    for feature in (
        "num_local_experts",
        "num_experts",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if raw.get(feature):
            raise UnsupportedModel(f"{feature}={raw[feature]!r} is not supported")


def _read_llama(config: PreTrainedConfig) -> Architecture:
    windows = (None,) * config.num_hidden_layers
    return Architecture(
        **_common(config, activation=config.hidden_act, windows=windows),
        qkv_bias=config.attention_bias,
        o_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        bias_configurable=True,
    )


def _read_mistral(config: PreTrainedConfig) -> Architecture:
    windows = (config.sliding_window,) * config.num_hidden_layers
    return Architecture(**_common(config, activation=config.hidden_act, windows=windows))


def _read_qwen2(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        **_common(config, activation=config.hidden_act, windows=_typed_windows(config)),
        qkv_bias=True,
    )


def _read_qwen3(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        **_common(config, activation=config.hidden_act, windows=_typed_windows(config)),
        qkv_bias=config.attention_bias,
        o_bias=config.attention_bias,
        qk_norm=True,
    )


def _read_gemma3(config: PreTrainedConfig) -> Architecture:
    values = _common(config, activation=config.hidden_activation, windows=_typed_windows(config))
    values["attention_scale"] = config.query_pre_attn_scalar**-0.5
    return Architecture(
        **values,
        qkv_bias=config.attention_bias,
        o_bias=config.attention_bias,
        qk_norm=True,
        sandwich_norms=True,
        norm_plus_one=True,
        embed_scale=config.hidden_size**0.5,
    )


def _common(
    config: PreTrainedConfig, *, activation: str, windows: tuple[int | None, ...]
) -> dict[str, Any]:
    if activation not in ACTIVATIONS:
        raise UnsupportedModel(
            f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if heads % config.num_key_value_heads:
        raise UnsupportedModel(
            f"{heads} attention heads cannot share {config.num_key_value_heads} key-value heads"
        )
    return {
        "family": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "norm_eps": config.rms_norm_eps,
        "activation": activation,
        "attention_scale": head_dim**-0.5,
        "windows": windows,
        "ropes": tuple(read_rope(config, kind) for kind in _layer_types(config)),
        "max_position_embeddings": config.max_position_embeddings,
        "tied": config.tie_word_embeddings,
    }


def _layer_types(config: PreTrainedConfig) -> list[str]:
    types: list[str] = getattr(config, "layer_types", None) or []
    return types or ["full_attention"] * config.num_hidden_layers


def _typed_windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    types = _layer_types(config)
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or len(types) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"layer_types must name {config.num_hidden_layers} layers as full_attention or "
            f"sliding_attention, found {len(types)} with {unknown or types}"
        )
    if "sliding_attention" in types and config.sliding_window is None:
        raise UnsupportedModel("layer_types has sliding_attention but sliding_window is not set")
    return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in types)


Reader = Callable[[PreTrainedConfig], Architecture]
# model_type -> transformers' config class, the checkpoint class, our reader
FAMILIES: dict[str, tuple[Any, str, Reader]] = {
    "llama": (LlamaConfig, "LlamaForCausalLM", _read_llama),
    "mistral": (MistralConfig, "MistralForCausalLM", _read_mistral),
    "qwen2": (Qwen2Config, "Qwen2ForCausalLM", _read_qwen2),
    "qwen3": (Qwen3Config, "Qwen3ForCausalLM", _read_qwen3),
    "gemma3_text": (Gemma3TextConfig, "Gemma3ForCausalLM", _read_gemma3),
}
