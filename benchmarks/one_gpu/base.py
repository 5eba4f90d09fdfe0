"""A base of a real model's shape with random weights: what speed and memory are measured on where
no weights can be had. Its answers mean nothing.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SCALE = 0.02
CONFIGS = {
    "135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),  # SmolLM2-135M
    "8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),  # Llama-3.1-8B
}


def random_base(shape: str, folder: Path) -> Path:
    """`folder`/SHAPE, bfloat16, one file a layer; written where it is missing."""
    out = folder / shape
    if (out / "model.safetensors.index.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[shape]
    config.dtype = torch.bfloat16
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(out)
    tokenizer(config.vocab_size).save_pretrained(out)
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in state(config).items()}
    files: dict[str, str] = {}
    place = "cuda" if torch.cuda.is_available() else "cpu"
    for name in shapes:
        files[name] = f"{'.'.join(name.split('.')[:3])}.safetensors"
    for file in sorted(set(files.values())):
        save_file({n: drawn(shapes[n], place) for n, at in files.items() if at == file}, out / file)
    index = {"metadata": {}, "weight_map": files}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def state(config: LlamaConfig) -> dict[str, Tensor]:
    """The parameters that a checkpoint has."""
    model = AutoModelForCausalLM.from_config(config)
    found: dict[str, Tensor] = model.state_dict()
    if config.tie_word_embeddings:
        del found["lm_head.weight"]
    return found


def drawn(shape: tuple[int, ...], place: str) -> Tensor:
    """Ones for a norm, else normal values."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, device=place, dtype=torch.bfloat16) * SCALE).cpu()


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A word for each token id; prompts are given as ids."""
    vocabulary = {f"<{i}>": i for i in range(words)}
    of_words = Tokenizer(models.WordLevel(vocabulary, unk_token="<0>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=of_words, unk_token="<0>", bos_token="<1>", eos_token="<2>"
    )
