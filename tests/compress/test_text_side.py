"""Templates, end tokens, defaults and added tokens travel; other tokenizers are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from tsugiki.codecs import artifact
from tsugiki.errors import CompressionRefused

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
)


def test_a_fine_tune_without_a_text_side_of_its_own_stores_none(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    walk.compress(tiny_base, tiny_tuned)
    assert artifact.read_header(walk.file).text is None


def test_chat_template_end_tokens_and_defaults_travel_to_the_decompressed_directory(
    walk: Any, tiny_base: Path, tune: Any, nudge: Any
) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, NORM))
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tuned)
    generation = {"eos_token_id": [1, 7], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (tuned / "generation_config.json").write_text(json.dumps(generation))

    back = walk.there_and_back(tiny_base, tuned)
    text = artifact.read_header(walk.file).text
    assert text is not None
    assert text["chat_template"] == TEMPLATE
    assert text["eos_token_ids"] == [1, 7]
    assert text["generation_defaults"] == {"temperature": 0.6, "top_p": 0.9}
    assert text["added_tokens"] == []
    assert AutoTokenizer.from_pretrained(back).chat_template == TEMPLATE
    written = json.loads((back / "generation_config.json").read_text())
    assert {key: written[key] for key in generation} == generation


def add_tokens(directory: Path, *contents: str) -> int:
    """Add special tokens to a directory's tokenizer; the length afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": list(contents)})
    tokenizer.save_pretrained(directory)
    return len(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_bring_their_rows_and_the_larger_vocabulary(
    tied: bool, walk: Any, tiny_model_factory: Any, tune: Any, nudge: Any, logits: Any
) -> None:
    from transformers import LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    probe = tiny_model_factory(LlamaConfig(vocab_size=400, **shape, **heads))
    size = len(AutoTokenizer.from_pretrained(probe))
    base = tiny_model_factory(
        LlamaConfig(vocab_size=size, tie_word_embeddings=tied, **shape, **heads), seed=6
    )

    def grow(tensors: dict[str, Tensor]) -> None:
        torch.manual_seed(0)
        for name in {EMBEDDING} | ({"lm_head.weight"} & set(tensors)):
            tensors[name] = torch.cat([tensors[name], torch.randn(2, 64)])
        nudge(tensors, "model.layers.0.mlp.up_proj.weight")

    tuned = tune(base, grow, {"vocab_size": size + 2})
    assert add_tokens(tuned, "<|tool|>", "<|result|>") == size + 2
    back = walk.there_and_back(base, tuned)
    text = artifact.read_header(walk.file).text
    assert text is not None
    assert text["vocab_size"] == size + 2
    assert text["added_tokens"] == [
        {"id": size, "content": "<|tool|>", "special": True},
        {"id": size + 1, "content": "<|result|>", "special": True},
    ]
    assert AutoTokenizer.from_pretrained(back).encode("<|result|>")[-1] == size + 1
    written, expected = (load_file(d / "model.safetensors") for d in (back, tuned))
    for name in {EMBEDDING} | ({"lm_head.weight"} & set(expected)):
        assert torch.equal(written[name], expected[name])
    assert (logits(back) - logits(tuned)).abs().max() < 0.05


def test_an_added_token_needs_a_row(walk: Any, tiny_base: Path, tune: Any, nudge: Any) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, NORM))
    add_tokens(tuned, *(f"<|extra {i}|>" for i in range(200)))
    with pytest.raises(CompressionRefused, match=r"resize_token_embeddings"):
        walk.compress(tiny_base, tuned)


def drop_merge(content: dict[str, Any]) -> None:
    content["model"]["merges"].pop()


def rename_token(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    longest = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary["somethingelse"] = vocabulary.pop(longest)
    content["model"]["merges"].pop()


def normalize(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def strip_around(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["lstrip"] = True


def skip_an_id(content: dict[str, Any]) -> None:
    ids = [*content["model"]["vocab"].values()]
    token = {**content["added_tokens"][0], "content": "<|late|>", "id": max(ids) + 5}
    content["added_tokens"].append(token)
    content["model"]["vocab"]["<|late|>"] = max(ids) + 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_merge, "merges in the base"),
        (rename_token, "merges in the base"),
        (normalize, "normalizer: base null, fine-tune"),
        (strip_around, "added token 0: lstrip is False in the base, True in it"),
        (skip_an_id, r"'<\|late\|>'"),
    ],
)
def test_another_tokenizer_is_refused_with_the_first_difference(
    change: Callable[[dict[str, Any]], None],
    said: str,
    walk: Any,
    tiny_base: Path,
    tune: Any,
    nudge: Any,
) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, NORM))
    path = tuned / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CompressionRefused, match=said):
        walk.compress(tiny_base, tuned)


def test_a_fine_tune_without_tokenizer_files_takes_the_bases(
    walk: Any, tiny_base: Path, tune: Any, nudge: Any, tmp_path: Path
) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, NORM))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tuned / name, bare)
    walk.compress(tiny_base, bare)
    assert artifact.read_header(walk.file).text is None
