"""Reading config.json: families, rope forms old and new, and refusals that name the feature."""

from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tsugiki.errors import UnsupportedModel
from tsugiki.model.architecture import read_architecture
from tsugiki.model.layout import layout_of

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA = LLAMA | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 16,
    "sliding_window": 8,
    "num_hidden_layers": 3,
}
QWEN = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_rope_reads_alike_in_its_old_and_new_form(scaling: dict[str, Any]) -> None:
    new = read_architecture(LLAMA | {"rope_parameters": {"rope_theta": 5e5} | scaling})
    old = read_architecture(LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling})
    assert old.ropes == new.ropes
    assert old.ropes != read_architecture(LLAMA | {"rope_theta": 5e5}).ropes


def test_the_oldest_form_of_linear_scaling_is_understood() -> None:
    old = read_architecture(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    plain = read_architecture(LLAMA)
    assert old.ropes[0].inv_freq[0] == plain.ropes[0].inv_freq[0] / 2


def test_gemma_layers_have_their_own_rope_in_both_forms() -> None:
    new = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    modern = read_architecture(GEMMA | {"rope_parameters": new, "layer_types": types})
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": scaling}
    classic = read_architecture(GEMMA | old | {"sliding_window_pattern": 3})
    assert classic == modern
    assert modern.windows == (8, 8, None)
    assert modern.ropes[0] == modern.ropes[1] != modern.ropes[2]


def test_qwen_windows_begin_after_max_window_layers() -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    assert read_architecture(QWEN | windowed).windows == (None, 16)
    assert read_architecture(QWEN | windowed | {"use_sliding_window": False}).windows == (None,) * 2


def test_tying_follows_the_default_of_the_family() -> None:
    assert not read_architecture(LLAMA).tied
    assert read_architecture(GEMMA).tied
    assert read_architecture(LLAMA | {"tie_word_embeddings": True}).tied


@pytest.mark.parametrize(
    "config_class", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, Gemma3TextConfig]
)
def test_a_config_saved_by_transformers_reads_back(config_class: Any) -> None:
    config = config_class(num_hidden_layers=2, vocab_size=300)
    architecture = read_architecture(config.to_dict())
    assert architecture.family == config.model_type
    assert (architecture.num_layers, architecture.vocab_size) == (2, 300)
    assert architecture == read_architecture(config.to_diff_dict())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "Llama, Mistral, Qwen2"),
        ({"model_type": None}, "None"),
        ({"model_type": "gemma3"}, "'gemma3'"),
        ({"model_type": "qwen3_moe"}, "qwen3_moe"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                    "original_max_position_embeddings": 32,
                }
            },
            "longrope",
        ),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "spiral"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "relu"}, "relu"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "no valid llama configuration"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read_architecture(LLAMA | change)


def test_bidirectional_gemma_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="use_bidirectional_attention"):
        read_architecture(GEMMA | {"use_bidirectional_attention": True})


def test_unknown_layer_types_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        read_architecture(GEMMA | {"layer_types": ["chunked_attention"] * 3})


def test_sliding_layers_without_a_window_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="sliding_window is not set"):
        read_architecture(QWEN | {"layer_types": ["sliding_attention"] * 2})


def test_the_layout_places_every_linear_in_its_fused_weight() -> None:
    layout = layout_of(read_architecture(QWEN))
    places = {
        name.removeprefix("model.layers.1."): (part.fused, part.offset, part.shape)
        for name, part in layout.linears.items()
        if name.startswith("model.layers.1.")
    }
    assert places == {
        "self_attn.q_proj.weight": ("layers.1.qkv", 0, (64, 64)),
        "self_attn.k_proj.weight": ("layers.1.qkv", 64, (32, 64)),
        "self_attn.v_proj.weight": ("layers.1.qkv", 96, (32, 64)),
        "self_attn.o_proj.weight": ("layers.1.o", 0, (64, 64)),
        "mlp.gate_proj.weight": ("layers.1.gate_up", 0, (96, 64)),
        "mlp.up_proj.weight": ("layers.1.gate_up", 96, (96, 64)),
        "mlp.down_proj.weight": ("layers.1.down", 0, (64, 96)),
    }
    assert layout.linears["lm_head.weight"].fused == "lm_head"


def test_only_llama_may_gain_biases_by_its_config() -> None:
    llama, qwen = layout_of(read_architecture(LLAMA)), layout_of(read_architecture(QWEN))
    assert llama.bias_allowed == set(llama.linears) - {"lm_head.weight"}
    assert llama.biases == {}
    assert {name.split(".")[-2] for name in qwen.bias_allowed} == {"q_proj", "k_proj", "v_proj"}
    assert set(qwen.biases.values()) == qwen.bias_allowed
