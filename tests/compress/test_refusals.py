"""What cannot be carried is refused by name, with the complete list; nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.compress.config_check import check_configs, config_differences
from tsugiki.errors import CompressionRefused, ConfigError, UnsupportedModel

UP_PROJ = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
Tensors = dict[str, Tensor]


def spoil(tensors: Tensors) -> None:
    tensors[UP_PROJ][0, :3] = float("nan")
    tensors[NORM][0] = float("inf")


def drop(tensors: Tensors) -> None:
    del tensors[UP_PROJ], tensors[NORM]


def reshape(tensors: Tensors) -> None:
    tensors[UP_PROJ] = tensors[UP_PROJ][:100].clone()


def add(tensors: Tensors) -> None:
    tensors["model.layers.0.adapter.weight"] = torch.ones(4, 4)


def quantize(tensors: Tensors) -> None:
    tensors[UP_PROJ] = (tensors[UP_PROJ] * 100).to(torch.int8)


def shrink(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:500].clone()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil, [f"{UP_PROJ}: 3 values are NaN", f"{NORM}: 1 values", r"\(2\)"]),
        (drop, [f"{UP_PROJ}: missing", f"{NORM}: missing"]),
        (reshape, [rf"{UP_PROJ}: shape \[100, 64\], but \[128, 64\]"]),
        (add, ["model.layers.0.adapter.weight: the base has no such tensor"]),
        (quantize, [f"{UP_PROJ}: dtype I8"]),
        (shrink, [r"model.embed_tokens.weight: shape \[500, 64\]"]),
    ],
)
def test_tensors_that_cannot_be_carried_are_all_named(
    change: Callable[[Tensors], None], said: list[str], walk: Any, tiny_base: Path, tune: Any
) -> None:
    for text in said:
        with pytest.raises(CompressionRefused, match=text):
            walk.compress(tiny_base, tune(tiny_base, change))
    assert not walk.file.exists()


def test_a_fine_tune_that_changes_nothing_is_refused(walk: Any, tiny_base: Path, tune: Any) -> None:
    with pytest.raises(CompressionRefused, match=r"no tensor of .* differs"):
        walk.compress(tiny_base, tune(tiny_base))


def test_the_base_itself_is_no_fine_tune(walk: Any, tiny_base: Path) -> None:
    with pytest.raises(CompressionRefused, match="is the base itself"):
        walk.compress(tiny_base, tiny_base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("rms_norm_eps", 1e-3),
        ("hidden_act", "gelu"),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 32),
        ("intermediate_size", 256),
        ("num_hidden_layers", 3),
        ("mlp_bias", None),
        ("a_new_option_of_the_forward", 1),
    ],
)
def test_a_config_that_changes_the_forward_is_refused_with_both_values(
    key: str, value: Any, tiny_base: Path
) -> None:
    base = json.loads((tiny_base / "config.json").read_text())
    if value is None:  # the other direction: the base has biases, the fine-tune has not
        base, tuned = {**base, key: True}, {**base, key: False}
    else:
        tuned = {**base, key: value}
    with pytest.raises(CompressionRefused, match=rf"{key}: base .*, fine-tune "):
        check_configs(base, tuned)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 0},
        {"model_type": "qwen3"},
    ],
)
def test_windows_and_families_are_refused(changes: dict[str, Any]) -> None:
    base = {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 64}
    assert config_differences(base, {**base, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {
            "torch_dtype": "float16",
            "use_cache": False,
            "eos_token_id": 7,
            "transformers_version": "4",
        },
        {"rms_norm_eps": 9.999999747378752e-07},  # 1e-6 as float32 has it
        {"max_position_embeddings": 4096},
        {"_name_or_path": "somewhere/else", "attention_dropout": 0.1},
        {"vocab_size": 520},
        {"tie_word_embeddings": False},
    ],
)
def test_harmless_and_carried_differences_pass(changes: dict[str, Any], tiny_base: Path) -> None:
    base = json.loads((tiny_base / "config.json").read_text())
    check_configs(base, {**base, **changes})


def test_old_and_new_spellings_of_rope_are_the_same() -> None:
    old = {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": None}
    new = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert config_differences(old, new) == []


def test_a_tied_fine_tune_of_an_untied_base_is_refused(tiny_base: Path) -> None:
    base = json.loads((tiny_base / "config.json").read_text())
    with pytest.raises(CompressionRefused, match="tie_word_embeddings: base False, fine-tune True"):
        check_configs({**base, "tie_word_embeddings": False}, base)


def test_an_adapter_goes_with_lora_only(walk: Any, tiny_base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CompressionRefused, match="only codec lora carries"):
        walk.compress(tiny_base, adapter)


def test_directories_that_are_no_models_are_named(
    walk: Any, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match="nowhere"):
        walk.compress(tiny_base, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="does not exist"):
        walk_to_missing_directory(walk, tiny_base)


def walk_to_missing_directory(walk: Any, base: Path) -> None:
    from dataclasses import replace

    replace(walk, directory=walk.directory / "missing").compress(base, base)


def test_an_existing_directory_is_never_overwritten(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    walk.compress(tiny_base, tiny_tuned)
    out = walk.decompress(tiny_base)
    before = sorted(out.iterdir())
    with pytest.raises(ConfigError, match="exists already"):
        walk.decompress(tiny_base)
    assert sorted(out.iterdir()) == before


def test_another_base_is_refused_when_decompressing(
    walk: Any, tiny_base: Path, tiny_tuned: Path, tiny_model_factory: Any
) -> None:
    from tsugiki.errors import WrongBase

    walk.compress(tiny_base, tiny_tuned)
    with pytest.raises(WrongBase, match="sha256:"):
        walk.decompress(tiny_model_factory(seed=99))


class Interrupted:
    """A progress display on which somebody presses Ctrl-C in the middle of packing."""

    def stage(self, text: str) -> None:
        pass

    def track(self, items: Any, text: str, total: int | None = None) -> Any:
        for count, item in enumerate(items):
            if count == 5 and ("packing" in text or "decompressing" in text):
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_run_leaves_nothing_behind(
    walk: Any, tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    from tsugiki.compress.decompress import decompress
    from tsugiki.compress.job import CompressJob
    from tsugiki.compress.pipeline import compress
    from tsugiki.compress.reconstruct import open_variant

    with pytest.raises(KeyboardInterrupt):
        compress(CompressJob("deltadq", tiny_base, tiny_tuned, walk.file), Interrupted())
    assert list(tmp_path.iterdir()) == []
    walk.compress(tiny_base, tiny_tuned)
    shutil.copy(walk.file, tmp_path / "copy.safetensors")
    before = sorted(tmp_path.iterdir())
    variant = open_variant(walk.file, str(tiny_base), tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        decompress(variant, tmp_path / "out", torch.float32, Interrupted())
    assert sorted(p for p in tmp_path.iterdir() if p.name != "cache") == before


def test_an_option_that_no_module_accepts_is_said_once(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    with pytest.raises(CompressionRefused, match=r"^option 'bits' is 9; expected an integer"):
        walk.compress(tiny_base, tiny_tuned, options={"bits": 9})
