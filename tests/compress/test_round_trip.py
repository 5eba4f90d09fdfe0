"""What a fine-tune changes comes back out of the file: every kind of tensor, in transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, Qwen2Config

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj"
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
Logits = Callable[[Path], Tensor]


@pytest.fixture(scope="session")
def untied_base(tiny_model_factory: Any) -> Path:
    return tiny_model_factory(LlamaConfig(**SMALL, tie_word_embeddings=False), seed=4)


@pytest.fixture(scope="session")
def qwen_base(tiny_model_factory: Any) -> Path:
    return tiny_model_factory(Qwen2Config(**SMALL, tie_word_embeddings=True), seed=5)


def assert_close(found: Tensor, expected: Tensor, base: Tensor, share: float = 0.03) -> None:
    """The remaining difference is a small share of what the fine-tune changed."""
    changed = (expected - base).abs().max()
    assert changed > 0.01
    assert (found - expected).abs().max() < share * changed


def test_a_full_fine_tune_comes_back_nearly_lossless_at_eight_bits_without_dropout(
    walk: Any, tiny_base: Path, tiny_tuned: Path, logits: Logits
) -> None:
    back = walk.there_and_back(tiny_base, tiny_tuned)
    assert_close(logits(back), logits(tiny_tuned), logits(tiny_base))


def test_the_decompressed_weights_are_exactly_the_effective_weights_of_the_file(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    from tsugiki.codecs import CODECS, artifact

    back = walk.there_and_back(tiny_base, tiny_tuned, options={"alpha": 8})
    written, base = (
        load_file(back / "model.safetensors"),
        load_file(tiny_base / "model.safetensors"),
    )
    modules = artifact.read(walk.file).modules
    assert len(modules) == 2 * 7 + 2 * 2 + 1
    for name, packed in modules.items():
        expected = CODECS[packed.codec].effective(base[name], packed).weight
        assert torch.equal(written[name], expected), name
    assert torch.equal(written[EMBEDDING], base[EMBEDDING])


def test_norms_alone_are_carried_as_they_are(
    walk: Any, tiny_base: Path, tune: Any, nudge: Any, logits: Logits
) -> None:
    name = "model.layers.1.input_layernorm.weight"
    tuned = tune(tiny_base, lambda t: nudge(t, name))
    back = walk.there_and_back(tiny_base, tuned)
    assert_close(logits(back), logits(tuned), logits(tiny_base), share=0.002)


def test_biases_of_qwen2_are_carried(
    walk: Any, qwen_base: Path, tune: Any, nudge: Any, logits: Logits
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        nudge(tensors, f"{Q_PROJ}.bias")
        nudge(tensors, f"{Q_PROJ}.weight")

    tuned = tune(qwen_base, change)
    back = walk.there_and_back(qwen_base, tuned)
    assert_close(logits(back), logits(tuned), logits(qwen_base))


def test_biases_that_only_the_fine_tune_has_count_as_changes_of_zero(
    walk: Any, tiny_base: Path, tune: Any, logits: Logits
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        shapes = {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 64}
        for layer in range(2):
            for module, width in shapes.items():
                bias = torch.zeros(width) if module == "o_proj" else 0.2 * torch.randn(width)
                tensors[f"model.layers.{layer}.self_attn.{module}.bias"] = bias

    torch.manual_seed(7)
    tuned = tune(tiny_base, change, {"attention_bias": True})
    back = walk.there_and_back(tiny_base, tuned)
    assert AutoConfig.from_pretrained(back).attention_bias
    assert_close(logits(back), logits(tuned), logits(tiny_base), share=0.002)


@pytest.mark.parametrize("rows", [[5, 300], slice(None)], ids=["two rows", "all rows"])
def test_a_tied_embedding_moves_input_and_output(
    rows: Any, walk: Any, tiny_base: Path, tune: Any, nudge: Any, logits: Logits
) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, EMBEDDING, rows))
    report = walk.compress(tiny_base, tuned)
    names = {module.name for module in report.modules}
    assert names == {EMBEDDING if rows == slice(None) else f"{EMBEDDING}:rows"}
    assert report.changed_parameters == (512 if rows == slice(None) else 2) * 64
    assert_close(logits(walk.decompress(tiny_base)), logits(tuned), logits(tiny_base))


@pytest.mark.parametrize("changed", [[EMBEDDING], [LM_HEAD], [EMBEDDING, LM_HEAD]])
@pytest.mark.parametrize("rows", [[5, 300], slice(None)], ids=["two rows", "all rows"])
def test_an_untied_fine_tune_of_a_tied_base_keeps_its_two_sides_apart(
    changed: list[str], rows: Any, walk: Any, tiny_base: Path, tune: Any, nudge: Any, logits: Logits
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[LM_HEAD] = tensors[EMBEDDING].clone()
        for name in changed:
            nudge(tensors, name, rows)

    tuned = tune(tiny_base, change, {"tie_word_embeddings": False})
    back = walk.there_and_back(tiny_base, tuned)
    assert not AutoConfig.from_pretrained(back).tie_word_embeddings
    assert_close(logits(back), logits(tuned), logits(tiny_base))


@pytest.mark.parametrize("name", [EMBEDDING, LM_HEAD])
def test_an_untied_base_takes_a_change_of_either_side(
    name: str, walk: Any, untied_base: Path, tune: Any, nudge: Any, logits: Logits
) -> None:
    tuned = tune(untied_base, lambda t: nudge(t, name))
    back = walk.there_and_back(untied_base, tuned)
    assert_close(logits(back), logits(tuned), logits(untied_base))


@pytest.mark.parametrize("codec", ["bitdelta", "lora"])
def test_other_codecs_go_the_same_way(
    codec: str, walk: Any, tiny_base: Path, tiny_tuned: Path, logits: Logits
) -> None:
    options = {"rank": 32} if codec == "lora" else {}
    back = walk.there_and_back(tiny_base, tiny_tuned, codec=codec, options=options)
    before, after = logits(tiny_base), logits(tiny_tuned)
    assert (logits(back) - after).square().mean() < 0.8 * (before - after).square().mean()


def test_a_peft_adapter_is_stored_as_it_is(
    walk: Any, tiny_base: Path, tmp_path: Path, logits: Logits
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)

    report = walk.compress(tiny_base, tmp_path / "adapter", codec="lora")
    assert report.codec == "lora"
    assert len(report.modules) == 4
    assert (logits(walk.decompress(tiny_base)) - logits(merged)).abs().max() < 1e-4


def test_bias_correction_is_written_as_ordinary_biases_with_zeros_where_none_is(
    walk: Any, tiny_base: Path, tune: Any, nudge: Any, dialogues_file: Path
) -> None:
    tuned = tune(tiny_base, lambda t: nudge(t, f"{Q_PROJ}.weight"))
    back = walk.there_and_back(tiny_base, tuned, options={"alpha": 8}, calibration=dialogues_file)
    written = load_file(back / "model.safetensors")
    assert written[f"{Q_PROJ}.bias"].abs().max() > 0
    assert not written["model.layers.1.self_attn.o_proj.bias"].any()
    config = AutoConfig.from_pretrained(back)
    assert (config.attention_bias, config.mlp_bias) == (True, False)


def test_a_decompressed_variant_can_be_compressed_again(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path, logits: Logits
) -> None:
    back = walk.there_and_back(
        tiny_base, tiny_tuned, options={"alpha": 8}, calibration=dialogues_file
    )
    report = walk.compress(tiny_base, back)
    assert report.relative_error < 0.02


def test_a_bfloat16_checkpoint_has_the_rounded_weights_and_says_what_it_lost(
    walk: Any, tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    from tsugiki.compress.decompress import decompress
    from tsugiki.compress.progress import Progress
    from tsugiki.compress.reconstruct import open_variant

    walk.compress(tiny_base, tiny_tuned)
    exact = load_file(walk.decompress(tiny_base) / "model.safetensors")
    variant = open_variant(walk.file, str(tiny_base), tmp_path)
    lost = decompress(variant, tmp_path / "rounded", torch.bfloat16, Progress(quiet=True))
    rounded = load_file(tmp_path / "rounded" / "model.safetensors")
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)
    assert 0.001 < lost.relative_error < 0.1


def test_large_checkpoints_are_written_as_shards_that_transformers_loads(
    tmp_path: Path, tiny_base: Path, logits: Logits
) -> None:
    import json

    from tsugiki.compress.checkpoint_writer import new_directory, write_weights

    tensors = load_file(tiny_base / "model.safetensors")
    config = json.loads((tiny_base / "config.json").read_text())
    with new_directory(tmp_path / "sharded") as directory:
        write_weights(directory, config, tensors.items(), torch.float32, shard_bytes=100_000)
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "sharded"), logits(tiny_base))
