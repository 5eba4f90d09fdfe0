"""The decoder against transformers, float32, through chunked prefill and shuffled KV blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tsugiki.model.loader import load_base
from tsugiki_kernels.interface import KernelBackend

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
GEMMA_ROPES = {
    "full_attention": {"rope_theta": 5e4} | LINEAR,
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}


def llama(**changes: Any) -> PreTrainedConfig:
    return LlamaConfig(**(SIZES | changes))


def qwen2(**changes: Any) -> PreTrainedConfig:
    return Qwen2Config(**(SIZES | changes))


def qwen3(**changes: Any) -> PreTrainedConfig:
    return Qwen3Config(**(SIZES | {"head_dim": 32} | changes))


def gemma3(**changes: Any) -> PreTrainedConfig:
    small = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 9}
    return Gemma3TextConfig(**(SIZES | small | changes))


WINDOWED = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
CASES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-head-dim": lambda: llama(head_dim=24),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-one-kv-head": lambda: llama(num_key_value_heads=1),
    "llama-gelu": lambda: llama(hidden_act="gelu"),
    "llama-rope-linear": lambda: llama(rope_parameters={"rope_theta": 1e4} | LINEAR),
    "llama-rope-llama3": lambda: llama(rope_parameters={"rope_theta": 1e4} | LLAMA3),
    "llama-rope-yarn": lambda: llama(rope_parameters={"rope_theta": 1e4} | YARN),
    "mistral": lambda: MistralConfig(**(SIZES | {"sliding_window": None})),
    "mistral-window": lambda: MistralConfig(**(SIZES | {"sliding_window": 11, "head_dim": 40})),
    "qwen2": qwen2,
    "qwen2-window": lambda: qwen2(**WINDOWED),
    "qwen2-tied-yarn": lambda: qwen2(
        tie_word_embeddings=True, rope_parameters={"rope_theta": 1e6} | YARN
    ),
    "qwen3": qwen3,
    "qwen3-window-biases": lambda: qwen3(attention_bias=True, **WINDOWED),
    "qwen3-layer-types": lambda: qwen3(
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3": lambda: gemma3(sliding_window_pattern=2),
    "gemma3-untied-biases": lambda: gemma3(tie_word_embeddings=False, attention_bias=True),
    "gemma3-ropes": lambda: gemma3(
        rope_parameters=GEMMA_ROPES,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
LENGTHS = (45, 1, 70, 13)  # longer than every window and than the original rope length of 32


def prompts(vocab: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, vocab, (n,), generator=generator) for n in LENGTHS]


def transformers_logits(directory: Path, sequences: list[Tensor]) -> list[Tensor]:
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return [model(ids[None]).logits[0] for ids in sequences]


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(
    case: str, tiny_model_factory: Any, run_sequences: Any
) -> None:
    directory = tiny_model_factory(CASES[case](), seed=3)
    base = load_base(directory, "cpu", torch.float32)
    sequences = prompts(base.architecture.vocab_size)
    expected = transformers_logits(directory, sequences)
    found = run_sequences(base, sequences, chunk=(9, 1, 32, 13))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max().item() <= 1e-4
        assert theirs.abs().max().item() > 0.5


@pytest.mark.compiler
@pytest.mark.parametrize("case", ["llama-biases", "mistral-window", "qwen3-layer-types", "gemma3"])
def test_the_compiled_kernels_give_the_logits_of_transformers(
    case: str, tiny_model_factory: Any, run_sequences: Any, cpu_backend: KernelBackend
) -> None:
    directory = tiny_model_factory(CASES[case](), seed=3)
    base = load_base(directory, "cpu", torch.float32, cpu_backend)
    sequences = prompts(base.architecture.vocab_size)
    expected = transformers_logits(directory, sequences)
    found = run_sequences(base, sequences, chunk=(9, 1, 32, 13))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max().item() <= 1e-4


@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_the_chunk_size_changes_nothing(
    chunk: int, tiny_model_factory: Any, run_sequences: Any
) -> None:
    base = load_base(tiny_model_factory(CASES["gemma3-ropes"](), seed=4), "cpu", torch.float32)
    sequences = prompts(base.architecture.vocab_size)
    whole = run_sequences(base, sequences, chunk=(100,) * 4)
    chunked = run_sequences(base, sequences, chunk=(chunk,) * 4)
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_sharded_and_single_file_checkpoints_load_alike(
    tiny_model_factory: Any, run_sequences: Any
) -> None:
    config = CASES["qwen2"]
    single = tiny_model_factory(config(), seed=6)
    sharded = tiny_model_factory(config(), seed=6, shard="60KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    ours = [load_base(d, "cpu", torch.float32) for d in (single, sharded)]
    assert ours[0].fingerprint == ours[1].fingerprint
    sequences = prompts(160)
    a, b = (run_sequences(base, sequences, chunk=(32,) * 4) for base in ours)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_bfloat16_stays_close_to_float32(tiny_model_factory: Any, run_sequences: Any) -> None:
    directory = tiny_model_factory(CASES["gemma3"](), seed=7, dtype=torch.bfloat16)
    low, full = (load_base(directory, "cpu", d) for d in ("bfloat16", "float32"))
    assert low.dtype is torch.bfloat16
    sequences = prompts(160)
    a, b = (run_sequences(base, sequences, chunk=(32,) * 4) for base in (low, full))
    for x, y in zip(a, b, strict=True):
        assert x.dtype is torch.float32
        assert (x - y).abs().mean() < 0.05 * y.abs().mean()
