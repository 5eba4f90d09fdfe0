"""Statistics of activations, the group size they choose, and the bias correction they allow."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tsugiki.codecs import artifact
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress import group_size
from tsugiki.compress.calibration import calibrate
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.errors import ConfigError, InvalidRequest

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def test_statistics_leave_out_the_first_position_and_weigh_answers_as_much_as_prompts(
    tiny_tuned: Path,
) -> None:
    dialogue = Dialogue(tuple(range(5, 17)), start=9, scored=True)
    model = load_model(tiny_tuned)
    seen: list[torch.Tensor] = []
    module = model.get_submodule(DOWN.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0][0]))
    found = calibrate(model, [dialogue], [DOWN], frozenset({DOWN}))
    handle.remove()
    x = seen[0].double()
    prompt, answer = x[1:8], x[8:]
    mean = (prompt.mean(0) + answer.mean(0)) / 2
    second = (prompt.square().mean(0) + answer.square().mean(0)) / 2
    torch.testing.assert_close(found.stats[DOWN].mean.double(), mean)
    torch.testing.assert_close(found.stats[DOWN].second_moment.double(), second)
    assert found.stats[DOWN].tokens == 11
    assert torch.equal(found.samples[DOWN], x[1:].float())


def test_dialogues_are_read_with_the_chat_template_and_end_with_the_end_token(
    dialogues_file: Path, tiny_base: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    first, _, third, *_ = read_dialogues(dialogues_file, tokenizer)
    assert tokenizer.decode(first.ids[: first.start]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(first.ids[first.start :]) == "Paris.<|im_end|>"
    assert (first.scored, third.scored) == (True, False)
    assert len(list(read_dialogues(dialogues_file, tokenizer, limit=2))) == 2
    assert all(len(d.ids) <= 60 for d in read_dialogues(dialogues_file, tokenizer, max_tokens=60))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "data.jsonl:2: not JSON"),
        ('["a"]', "data.jsonl:2: not an object"),
        ('{"prompt": "a"}', "prompt or answer is missing"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "must end with the assistant"),
    ],
)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path, tiny_base: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(InvalidRequest, match=said):
        list(read_dialogues(path, AutoTokenizer.from_pretrained(tiny_base)))


def test_an_empty_or_missing_file_is_named(tmp_path: Path, tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidRequest, match="holds no example"):
        list(read_dialogues(tmp_path / "empty.jsonl", tokenizer))
    with pytest.raises(InvalidRequest, match=r"missing\.jsonl cannot be read"):
        list(read_dialogues(tmp_path / "missing.jsonl", tokenizer))


@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_analytic_variance_is_that_of_simulated_dropout(size: int) -> None:
    torch.manual_seed(0)
    alpha, width = 8, 64
    x = torch.randn(width) + 0.5
    delta = torch.randn(1, width)
    stats = ModuleStats(mean=x, second_moment=x.square(), tokens=1)  # x is a constant
    z = (delta * x).view(-1, size)
    picks = torch.rand(20_000, *z.shape).argsort(2)[:, :, : size // alpha]
    kept = z.expand(20_000, -1, -1).gather(2, picks).sum((1, 2)) * alpha
    simulated = float((kept - z.sum()).square().mean())
    found = group_size.dropout_variance(delta, stats, alpha, size)
    assert found == pytest.approx(simulated, rel=0.05)


def test_candidates_double_up_to_the_whole_row() -> None:
    assert group_size.candidates(16, 576) == [16, 32, 64, 128, 256, 512, 576]


def test_small_groups_win_where_the_means_differ_along_the_row() -> None:
    delta = torch.ones(4, 64)
    mean = torch.cat([torch.full((32,), 5.0), torch.full((32,), -5.0)])
    stats = {"w": ModuleStats(mean, mean.square() + 0.01, 1)}
    best, scores = group_size.best_by_variance(lambda: [("w", delta)], stats, 8, [8, 32, 64])
    assert best == 32
    assert scores[64] > scores[8]


@pytest.mark.parametrize("way", ["auto", "auto-attention"])
def test_the_group_size_is_chosen_from_calibration(
    way: str, walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path
) -> None:
    report = walk.compress(
        tiny_base, tiny_tuned, options={"alpha": 8}, group_size=way, calibration=dialogues_file
    )
    chosen = artifact.read_header(walk.file).options["group_size"]
    assert chosen in (8, 16, 32, 64)
    assert report.notes[0].startswith(f"group size {chosen} by {way} (8: ")


def test_choosing_a_group_size_needs_calibration(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    with pytest.raises(ConfigError, match="needs --calibration"):
        walk.compress(tiny_base, tiny_tuned, options={"alpha": 8}, group_size="auto")


def test_a_bias_correction_restores_the_mean_output(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path
) -> None:
    from safetensors.torch import load_file

    walk.compress(tiny_base, tiny_tuned, options={"alpha": 8}, calibration=dialogues_file)
    back = load_file(walk.decompress(tiny_base) / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tuned)
    dialogues = list(read_dialogues(dialogues_file, tokenizer))
    stats = calibrate(load_model(tiny_tuned), dialogues, [Q_PROJ]).stats[Q_PROJ]
    exact = load_file(tiny_tuned / "model.safetensors")[Q_PROJ] @ stats.mean
    without = back[Q_PROJ] @ stats.mean
    corrected = without + back[Q_PROJ.replace("weight", "bias")]
    assert (corrected - exact).norm() < 0.1 * (without - exact).norm()


def test_the_same_job_gives_the_same_file(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path
) -> None:
    digests = {
        walk.compress(tiny_base, tiny_tuned, calibration=dialogues_file).digest for _ in range(2)
    }
    assert len(digests) == 1
    assert json.dumps(sorted(digests)).count("sha256:") == 1
