"""Opening model directories: names, laziness, refusals, and the base fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsugiki.errors import UnsupportedModel
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    """A writable copy of the tiny base."""
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def shard(directory: Path) -> None:
    """Split model.safetensors in two, by hand, in an order that is not alphabetical."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors, reverse=True)
    half = len(names) // 2
    weight_map = {}
    for i, part in enumerate((names[:half], names[half:]), start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "model.safetensors").unlink()


def test_names_shapes_and_tensors_are_those_of_the_file(tiny_base: Path) -> None:
    checkpoint = open_checkpoint(tiny_base)
    stored = load_file(tiny_base / "model.safetensors")
    assert checkpoint.names() == sorted(stored)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert checkpoint.shape(name) == (32, 64)
    assert checkpoint.dtype(name) is torch.float32
    assert torch.equal(checkpoint.tensor(name), stored[name])
    assert checkpoint.config["model_type"] == "llama"


def test_the_fingerprint_does_not_depend_on_sharding(copied: Path) -> None:
    single = base_fingerprint(open_checkpoint(copied), None)
    before = {n: open_checkpoint(copied).tensor(n).clone() for n in open_checkpoint(copied).names()}
    shard(copied)
    checkpoint = open_checkpoint(copied)
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in before.items())
    assert base_fingerprint(checkpoint, None) == single
    assert single.startswith("sha256:")
    assert len(single) == 71


def test_a_tied_duplicate_of_the_embedding_changes_no_fingerprint(copied: Path) -> None:
    alone = base_fingerprint(open_checkpoint(copied), None)
    tensors = load_file(copied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copied / "model.safetensors")
    checkpoint = open_checkpoint(copied)
    assert "lm_head.weight" not in checkpoint.names()
    assert base_fingerprint(checkpoint, None) == alone


def test_a_tied_duplicate_that_differs_is_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings"):
        open_checkpoint(copied)


def test_one_changed_value_changes_the_fingerprint(copied: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = base_fingerprint(open_checkpoint(copied), cache)
    assert base_fingerprint(open_checkpoint(copied), cache) == before
    tensors = load_file(copied / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, copied / "model.safetensors")
    after = base_fingerprint(open_checkpoint(copied), cache)
    assert after != before
    assert after == base_fingerprint(open_checkpoint(copied), None)


def test_a_known_fingerprint_comes_from_the_cache_without_reading(
    copied: Path, tmp_path: Path
) -> None:
    base_fingerprint(open_checkpoint(copied), tmp_path)
    file = tmp_path / "fingerprints.json"
    file.write_text(json.dumps(dict.fromkeys(json.loads(file.read_text()), "sha256:remembered")))
    assert base_fingerprint(open_checkpoint(copied), tmp_path) == "sha256:remembered"


def test_a_damaged_cache_is_written_anew(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "fingerprints.json").write_text("{half")
    fresh = base_fingerprint(open_checkpoint(copied), None)
    assert base_fingerprint(open_checkpoint(copied), tmp_path) == fresh


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="nowhere: no such model directory"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_directory_without_a_config_is_refused(copied: Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        open_checkpoint(copied)


def test_a_config_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="not valid JSON"):
        open_checkpoint(copied)


def test_pickled_weights_are_refused_with_the_remedy(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin.*convert to safetensors"):
        open_checkpoint(copied)


def test_a_pickle_renamed_to_safetensors_is_refused(copied: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(64)}, copied / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="not a readable safetensors file"):
        open_checkpoint(copied)


def test_a_truncated_file_is_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UnsupportedModel, match="not a readable safetensors file"):
        open_checkpoint(copied)


def test_a_missing_shard_is_named(copied: Path) -> None:
    shard(copied)
    (copied / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="model-00002-of-00002"):
        open_checkpoint(copied)


def test_a_tensor_of_the_index_that_no_shard_holds_is_named(copied: Path) -> None:
    shard(copied)
    index = copied / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(UnsupportedModel, match=r"model\.ghost\.weight"):
        open_checkpoint(copied)


def test_a_shard_name_that_leaves_the_directory_is_refused(copied: Path) -> None:
    shard(copied)
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UnsupportedModel, match="leaves the directory"):
        open_checkpoint(copied)


def test_a_missing_tensor_is_named(tiny_base: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"lacks model\.layers\.9\.mlp"):
        open_checkpoint(tiny_base).tensor("model.layers.9.mlp.up_proj.weight")
