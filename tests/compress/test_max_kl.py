"""--max-kl: the smallest file whose measured divergence is within the goal."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki.compress.calibration_file import CalibrationFile
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import Estimate, evaluate
from tsugiki.compress.hf_model import load_model, model_of, refill
from tsugiki.compress.job import CompressJob, open_base
from tsugiki.compress.kl_search import Attempt, smaller_than, smallest
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.reference import Reference, within
from tsugiki.errors import CompressionRefused, ConfigError, InvalidRequest

QUIET = Progress(quiet=True)
EMBEDDING = "model.embed_tokens.weight"


def law(constant: float, most: float = float("inf")) -> Callable[[float], Attempt[float] | None]:
    """KL in proportion to the ratio; no file above `most`."""

    def attempt(ratio: float) -> Attempt[float] | None:
        kl = constant * ratio
        return Attempt(ratio, ratio, Estimate(kl, kl, kl)) if ratio <= most else None

    return attempt


@pytest.mark.parametrize("best", [2.5, 60.0, 128.0, 700.0, 5000.0])
def test_the_ratio_found_is_within_four_percent_of_the_best_one(best: float) -> None:
    found = smallest(law(0.01 / best), 0.01, QUIET)
    assert found.kl.value <= 0.01
    assert best / 2 ** (1 / 16) <= found.ratio <= best * (1 + 1e-9)


def test_the_smallest_file_there_is_may_be_close_enough() -> None:
    assert 96 < smallest(law(1e-9, most=100.0), 0.01, QUIET).ratio <= 100


def test_a_goal_that_no_size_meets_is_refused_with_the_closest_ratio() -> None:
    with pytest.raises(CompressionRefused, match=r"the closest, 2\.0x, has KL 2\.0"):
        smallest(law(1.0), 0.01, QUIET)


def test_what_is_returned_was_measured_within_the_goal_although_noise_breaks_the_order() -> None:
    rough = {128.0: 0.02, 32.0: 0.001, 64.0: 0.02}

    def attempt(ratio: float) -> Attempt[float]:
        kl = rough.get(ratio, 0.009 if ratio < 40 else 0.03)
        return Attempt(ratio, ratio, Estimate(kl, kl, kl))

    assert smallest(attempt, 0.01, QUIET).kl.value <= 0.01


def test_another_codec_is_searched_only_beyond_the_ratio_that_is_reached_already() -> None:
    asked: list[float] = []

    def counted(ratio: float) -> Attempt[float] | None:
        asked.append(ratio)
        return law(0.01 / 300)(ratio)

    better = smaller_than(40.0, counted, 0.01, QUIET)
    assert better is not None
    assert 300 / 2 ** (1 / 16) <= better.ratio <= 300
    assert min(asked) > 40
    asked.clear()
    assert smaller_than(310.0, counted, 0.01, QUIET) is None
    assert len(asked) == 1


def test_auto_takes_the_codec_whose_file_is_the_smallest(
    walk: Any, tiny_base: Path, tune: Any, dialogues_file: Path, cache_dir: Path
) -> None:
    def add_outer_product(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in (n for n in tensors if n.endswith("_proj.weight")):
            rows, columns = (torch.randn(n, generator=generator) for n in tensors[name].shape)
            tensors[name] += 0.004 * rows[:, None] * columns

    tuned = tune(tiny_base, add_outer_product)
    asked: dict[str, Any] = {"calibration": dialogues_file, "cache_dir": cache_dir, "options": {}}
    assert walk.compress(tiny_base, tuned, codec="auto", max_kl=3e-3, **asked).codec == "lora"


def test_auto_takes_what_reaches_the_goal_where_the_likeliest_codec_does_not(
    walk: Any, tiny_base: Path, tune: Any, dialogues_file: Path, cache_dir: Path
) -> None:
    def move_far(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] += torch.ones(len(tensors[name]), 1) * torch.randn(tensors[name].shape[1])

    torch.manual_seed(0)
    tuned = tune(tiny_base, move_far)
    asked: dict[str, Any] = {"calibration": dialogues_file, "cache_dir": cache_dir, "options": {}}
    with pytest.raises(CompressionRefused, match="no file of at least 2x"):
        walk.compress(tiny_base, tuned, max_kl=1e-6, **asked)
    assert walk.compress(tiny_base, tuned, codec="auto", max_kl=1e-6, **asked).codec == "lora"


def test_answers_are_kept_up_to_a_number_of_tokens_and_one_in_any_case() -> None:
    dialogues = [Dialogue(tuple(range(10)), 4, scored=True)] * 5
    assert len(within(dialogues, 12)) == 2
    assert len(within(dialogues, 3)) == 1


def test_a_kept_reference_compares_as_two_models_side_by_side_do(
    tiny_base: Path, tiny_tuned: Path
) -> None:
    models = {"tuned": load_model(tiny_tuned), "variant": load_model(tiny_base)}
    dialogues = [Dialogue(tuple(range(3, 3 + n)), 2, scored=True) for n in (5, 9, 12)]
    kept = Reference.of(models["tuned"], dialogues, QUIET)
    assert kept.compare(models["variant"]) == evaluate(models, dialogues, QUIET)
    assert kept.examples == 3


def test_a_refilled_model_is_the_other_model(tiny_base: Path, tiny_tuned: Path) -> None:
    model, tuned = load_model(tiny_base), load_model(tiny_tuned)
    refill(model, tuned.named_parameters())
    ids = torch.arange(3, 19)[None]
    assert torch.equal(model(ids).logits, tuned(ids).logits)


def test_examples_that_calibrate_do_not_measure(
    tiny_base: Path, tiny_tuned: Path, dialogues_file: Path, tmp_path: Path
) -> None:
    long = json.dumps({"prompt": "word " * 2000, "answer": "never reached"})
    path = tmp_path / "lines.jsonl"
    path.write_text(f"{long}\n{dialogues_file.read_text()}")
    job = CompressJob(
        "deltadq", tiny_base, tiny_tuned, tmp_path / "v", calibration=path, max_kl=0.1
    )
    file = CalibrationFile.of(job, path, open_base(tiny_base))
    calibrating, measuring = list(file.to_calibrate()), list(file.to_measure())
    assert (len(calibrating), len(measuring)) == (2, 4)
    assert file.calibrating == 3


def test_the_report_says_what_the_file_that_was_written_measures(
    walk: Any, tiny_base: Path, tune: Any, nudge: Any, dialogues_file: Path, cache_dir: Path
) -> None:
    def untie(tensors: dict[str, torch.Tensor]) -> None:  # only the input side changes
        tensors["lm_head.weight"] = tensors[EMBEDDING].clone()
        nudge(tensors, EMBEDDING)

    tuned = tune(tiny_base, untie, {"tie_word_embeddings": False})
    asked: dict[str, Any] = {"calibration": dialogues_file, "cache_dir": cache_dir}
    report = walk.compress(tiny_base, tuned, max_kl=0.02, probe=2, options={}, **asked)
    note = next(n for n in report.notes if "--max-kl" in n)
    said = re.match(r"KL ([0-9.]+) \[95 %: ", note)
    assert said is not None
    assert report.honest_ratio > 2
    variant = open_variant(walk.file, str(tiny_base), cache_dir)
    models = {"tuned": load_model(tuned), "variant": model_of(variant.config(), variant.tensors())}
    job = CompressJob("deltadq", tiny_base, tuned, walk.file, max_kl=0.02, **asked)
    held_out = CalibrationFile.of(job, dialogues_file, open_base(tiny_base)).to_measure()
    measured = evaluate(models, list(held_out), QUIET).kl.value
    assert measured <= 0.02
    assert float(said[1]) == pytest.approx(measured, abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"max_kl": 0.01}, "needs --calibration"),
        ({"max_kl": -1.0}, "above 0"),
        ({"codec": "auto"}, "give --max-kl"),
        ({"max_kl": 0.01, "target_ratio": 8.0}, "exclude each other"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(
    asked: dict[str, Any], said: str, walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        walk.compress(tiny_base, tiny_tuned, **asked)


def test_a_codec_without_a_size_to_choose_is_refused(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path
) -> None:
    with pytest.raises(ConfigError, match="bitdelta has none"):
        walk.compress(
            tiny_base, tiny_tuned, codec="bitdelta", calibration=dialogues_file, max_kl=0.1
        )


def test_one_example_cannot_both_calibrate_and_measure(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(dialogues_file.read_text().splitlines()[0])
    with pytest.raises(InvalidRequest, match="holds 1 examples"):
        walk.compress(tiny_base, tiny_tuned, calibration=path, max_kl=0.1)
