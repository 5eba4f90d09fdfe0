"""PEFT's adapters: the same weights as PEFT's own merge, and refusals by name."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tsugiki.codecs import CODECS
from tsugiki.codecs.peft_adapter import from_peft
from tsugiki.errors import CompressionRefused

LORA = CODECS["lora"]
pytestmark = [  # what peft and transformers say to each other, and about unusual adapters
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def adapter(directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Save a random adapter of the base model as PEFT does."""
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    model = peft.get_peft_model(base_model(), peft.LoraConfig(**wanted)).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"target_modules": "all-linear"},
        {"target_modules": ["v_proj"], "layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32}},
        {"rank_pattern": {r"^model\.layers\.0\.mlp\.down_proj": 6}, "use_rslora": True},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_effective_weights_are_those_that_peft_merges(tmp_path, options):
    directory = adapter(tmp_path / "adapter", **options)
    base = dict(base_model().named_parameters())
    merged_model = peft.PeftModel.from_pretrained(base_model(), directory).merge_and_unload()
    merged = dict(merged_model.named_parameters())
    modules = from_peft(directory)
    changed = {n for n, p in merged.items() if not torch.equal(p, base[n])}
    assert set(modules) == changed
    for name, packed in modules.items():
        assert packed.name == name
        found = LORA.effective(base[name].detach(), packed).weight
        assert torch.allclose(found, merged[name].detach(), rtol=0, atol=1e-6)


def test_16_bit_factors_stay_as_they_are_and_can_be_converted(tmp_path):
    directory = adapter(tmp_path, torch.bfloat16)
    assert {p.options["dtype"] for p in from_peft(directory).values()} == {"bfloat16"}
    assert {p.options["dtype"] for p in from_peft(directory, "float16").values()} == {"float16"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
    ],
    ids=str,
)
def test_adapters_that_do_more_are_refused_by_name(tmp_path, options, message):
    directory = adapter(tmp_path, **options)
    with pytest.raises(CompressionRefused, match=message):
        from_peft(directory)


def altered(directory: Path, **changes: Any) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow=1"),
        ({"r": 5}, "has rank 4"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
    ids=str,
)
def test_settings_that_change_the_meaning_are_refused_by_name(tmp_path, changes, message):
    directory = altered(adapter(tmp_path), **changes)
    with pytest.raises(CompressionRefused, match=message):
        from_peft(directory)


def test_a_pickled_adapter_is_never_read(tmp_path):
    directory = adapter(tmp_path)
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(CompressionRefused, match="pickle and is never read"):
        from_peft(directory)


def test_a_directory_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(CompressionRefused, match=r"no adapter_config\.json"):
        from_peft(tmp_path)
