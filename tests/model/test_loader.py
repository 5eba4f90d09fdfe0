"""Loading a base: what it knows about itself, and which directories it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsugiki.errors import ConfigError, UnsupportedModel
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import allocate_kv_cache, bytes_per_block
from tsugiki.model.loader import load_base
from tsugiki_kernels.operands import AttentionBatch


@pytest.fixture
def copied(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "my-base"))


def edit(directory: Path, tensors: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    """Change the stored tensors of a directory."""
    stored = {k: v for k, v in load_file(directory / "model.safetensors").items() if k not in drop}
    save_file(stored | tensors, directory / "model.safetensors")


def test_a_base_knows_its_identity_size_and_stored_vectors(copied: Path) -> None:
    base = load_base(copied, "cpu", "bfloat16")
    stored = load_file(copied / "model.safetensors")
    assert base.id == "my-base"
    assert base.config["vocab_size"] == 512
    assert base.nbytes == 2 * sum(t.numel() for t in stored.values())
    assert base.embedding.shape == (512, 64)
    assert base.dtype is torch.bfloat16
    assert torch.equal(base.vector("model.norm.weight"), stored["model.norm.weight"])
    with pytest.raises(UnsupportedModel, match="ghost"):
        base.vector("ghost")


def test_the_fingerprint_does_not_depend_on_the_dtype_of_computation(copied: Path) -> None:
    assert load_base(copied, "cpu", "bfloat16").fingerprint == load_base(copied).fingerprint
    assert load_base(copied, dtype=torch.float32).fingerprint == load_base(copied).fingerprint


def test_an_unknown_dtype_is_refused(copied: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        load_base(copied, "cpu", "int8")


def test_a_missing_tensor_is_named(copied: Path) -> None:
    edit(copied, {}, drop=("model.layers.1.mlp.up_proj.weight",))
    with pytest.raises(UnsupportedModel, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(copied)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(copied: Path) -> None:
    edit(copied, {"model.norm.weight": torch.ones(63)})
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight has shape \[63\].*\[64\]"):
        load_base(copied)


def test_a_tensor_that_the_architecture_does_not_know_is_refused(copied: Path) -> None:
    edit(copied, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(UnsupportedModel, match=r"q_proj\.bias is no parameter"):
        load_base(copied)


def test_an_unsupported_family_is_refused_with_the_supported_ones(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UnsupportedModel, match="Gemma 3"):
        load_base(copied)


def test_a_cache_block_has_the_stated_size(copied: Path) -> None:
    base = load_base(copied)
    cache = allocate_kv_cache(base.architecture, 7, 16, torch.bfloat16)
    assert (cache.num_blocks, cache.block_size) == (7, 16)
    total = sum(layer.nbytes for layer in cache.layers)
    assert total == 7 * bytes_per_block(base.architecture, 16, torch.bfloat16)


def test_a_step_that_wants_no_logits_gives_none(copied: Path) -> None:
    base = load_base(copied, dtype="float32")
    cache = allocate_kv_cache(base.architecture, 1, 4, torch.float32)
    where = AttentionBatch(
        query_start=torch.tensor([0, 3], dtype=torch.int32),
        context=torch.tensor([3], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        slots=torch.arange(3),
        block_size=4,
    )
    ids, none = torch.tensor([5, 6, 7]), torch.zeros(0, dtype=torch.int64)
    segments = (Segment(None, 0, 3, 3),)
    logits = base.decoder.forward(Batch(ids, torch.arange(3), segments, where, none), cache)
    assert logits.shape == (0, 512)
    assert cache.layers[1][0, 0, :, :3].abs().min() > 0
