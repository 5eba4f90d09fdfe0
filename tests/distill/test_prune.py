"""A pruned student is the base without some layers, chosen by what they do."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TinyFactory, tiny_llama_config
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.progress import Progress
from tsugiki.distill.importance import block_influence, by_influence, deepest_first
from tsugiki.distill.prune import prune
from tsugiki.errors import ConfigError, UnsupportedModel

QUIET = Progress(quiet=True)


def test_the_student_computes_with_the_layers_that_are_left(
    deep_base: Path, tmp_path: Path
) -> None:
    result = prune(deep_base, 4, tmp_path / "student", None, QUIET)
    assert result.kept == (0, 1, 2, 5)
    assert result.influence is None
    model = AutoModelForCausalLM.from_pretrained(deep_base, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in result.kept])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32)
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        assert torch.equal(student(ids).logits, model(ids).logits)
    tokenizers = [AutoTokenizer.from_pretrained(p) for p in (deep_base, tmp_path / "student")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def test_a_layer_that_does_nothing_goes_first(
    deep_base: Path, distill_data: Path, tmp_path: Path
) -> None:
    model = load_model(deep_base)
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    idle = tmp_path / "idle"
    model.save_pretrained(idle)
    AutoTokenizer.from_pretrained(deep_base).save_pretrained(idle)
    result = prune(idle, 5, tmp_path / "student", distill_data, QUIET)
    assert result.kept == (0, 1, 2, 4, 5)
    assert result.influence is not None
    assert result.influence[3] == pytest.approx(0.0, abs=1e-6)


def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_comes_out(
    deep_base: Path, dialogues: list[Dialogue]
) -> None:
    model = load_model(deep_base)
    found = block_influence(model, dialogues)
    turns: list[float] = []
    for dialogue in dialogues:
        with torch.inference_mode():
            states = model(torch.tensor([dialogue.ids]), output_hidden_states=True).hidden_states
        # the last of them is behind the final norm: a layer's output it is not
        before, after = states[2][0].double(), states[3][0].double()
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        turns += (1 - cosine).tolist()
    assert found[2] == pytest.approx(sum(turns) / len(turns), rel=1e-5)


def test_orders() -> None:
    assert deepest_first(5) == [3, 2, 1, 0, 4]
    assert by_influence([0.9, 0.1, 0.3]) == [1, 2, 0]


def test_kinds_of_layers_go_with_their_layers(
    tiny_model_factory: TinyFactory, tmp_path: Path
) -> None:
    from transformers import Qwen3Config

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    values = {k: v for k, v in tiny_llama_config().to_dict().items() if k in ALIKE}
    config = Qwen3Config(
        **values,
        num_hidden_layers=4,
        head_dim=16,
        layer_types=kinds,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=0,
    )
    prune(tiny_model_factory(config), 2, tmp_path / "student", None, QUIET)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert student.config.layer_types == ["sliding_attention", "full_attention"]


ALIKE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("layers", [0, 6, 7])
def test_a_number_that_is_no_pruning_is_refused(
    deep_base: Path, layers: int, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"--layers is {layers}; the base has 6: give 1 to 5"):
        prune(deep_base, layers, tmp_path / "student", None, QUIET)


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no such model directory"):
        prune(tmp_path / "none", 2, tmp_path / "student", None, QUIET)
