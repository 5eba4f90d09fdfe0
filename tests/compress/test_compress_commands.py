"""The four commands as a person calls them."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.commands import compress as compress_command
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import batches, wilson
from tsugiki.errors import ConfigError


@pytest.fixture(autouse=True)
def own_cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(cache_dir))


def run(command: str, *arguments: object) -> int:
    module = importlib.import_module(f"tsugiki.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    status: int = module.run(parser.parse_args([str(item) for item in arguments]))
    return status


def test_compress_prints_its_report_and_shows_stages_on_standard_error(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "v.safetensors", tmp_path / "r.json"
    assert (
        run(
            "compress",
            "deltadq",
            "--base",
            tiny_base,
            "--tuned",
            tiny_tuned,
            "--out",
            out,
            "--alpha",
            8,
            "--bits",
            2,
            "--report",
            report,
            "--seed",
            3,
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "honest ratio" in shown.out
    assert "packing with deltadq (19)" in shown.err
    assert json.loads(report.read_text())["options"]["seed"] == 3


def test_the_paper_preset_is_the_published_recipe(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    run("compress", "deltadq", "--base", tiny_base, "--tuned", tiny_tuned, "--out", out, "--paper")
    capsys.readouterr()
    run("inspect", out, "--json")
    found = json.loads(capsys.readouterr().out)
    expected = {"alpha": 8, "bits": 4, "parts": 8, "rows_per_mask": 1, "grid": "minmax"}
    assert {key: found["options"][key] for key in expected} == expected
    assert found["paper_ratio"] == 128
    assert found["honest_ratio"] < 64


def test_inspect_sums_to_the_file_and_verifies_the_base(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tsugiki.errors import WrongBase

    out = tmp_path / "v.safetensors"
    run("compress", "bitdelta", "--base", tiny_base, "--tuned", tiny_tuned, "--out", out)
    capsys.readouterr()
    assert run("inspect", out, "--base", tiny_base) == 0
    assert f"verified against {tiny_base}" in capsys.readouterr().out
    run("inspect", out, "--json")
    found = json.loads(capsys.readouterr().out)
    assert sum(found["sections"].values()) == found["bytes"] == out.stat().st_size
    assert found["base"]["verified"] is None
    with pytest.raises(WrongBase):
        run("inspect", out, "--base", tiny_tuned)


def test_inspect_leaves_out_what_a_file_without_a_report_does_not_tell(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, bare = tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"
    run("compress", "bitdelta", "--base", tiny_base, "--tuned", tiny_tuned, "--out", whole)
    found = artifact.read(whole)
    artifact.write(bare, ArtifactSpec("bitdelta", base=found.header.base), found.modules)
    capsys.readouterr()
    assert run("inspect", bare) == 0
    shown = capsys.readouterr().out
    assert "honest ratio" in shown
    assert "whole-model ratio" not in shown


def test_decompress_writes_what_it_says(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    run("compress", "deltadq", "--base", tiny_base, "--tuned", tiny_tuned, "--out", out)
    capsys.readouterr()
    run("decompress", out, "--base", tiny_base, "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert "rounding to bfloat16 adds an error of" in capsys.readouterr().out
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_eval_finds_a_nearly_exact_variant_nearly_equal(
    tiny_base: Path,
    tiny_tuned: Path,
    tmp_path: Path,
    dialogues_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "v.safetensors"
    run(
        "compress",
        "deltadq",
        "--base",
        tiny_base,
        "--tuned",
        tiny_tuned,
        "--out",
        out,
        "--alpha",
        1,
        "--bits",
        8,
        "--group-size",
        1,
    )
    capsys.readouterr()
    arguments = ("--base", tiny_base, "--variant", out, "--tuned", tiny_tuned)
    assert run("eval", *arguments, "--data", dialogues_file, "--with-base", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["examples"] == 6
    assert 0 <= found["kl"]["value"] < 1e-3
    assert found["top1_agreement"]["value"] > 0.9
    tuned, variant = (found["perplexity"][name]["value"] for name in ("tuned", "variant"))
    assert variant == pytest.approx(tuned, rel=0.02)
    assert set(found["accuracy"]) == {"tuned", "variant", "base"}
    run("eval", *arguments, "--data", dialogues_file, "--limit", 2)
    assert "KL(tuned || variant)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lora", "--alpha", 8), "--alpha belongs to deltadq; lora has no such option"),
        (("bitdelta", "--rank", 8), "--rank belongs to lora"),
        (("deltadq", "--group-size", "many"), "--group-size 'many'"),
        (("deltadq", "--group-size", "auto", "--target-ratio", 9), "needs --alpha"),
        (("deltadq", "--max-bytes", "2 furlongs"), "is not a size"),
        (("deltadq", "--target-ratio", 0), "must be above 0"),
    ],
)
def test_wrong_flags_are_named(
    arguments: tuple[object, ...], said: str, tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    paths = ("--base", tiny_base, "--tuned", tiny_tuned, "--out", tmp_path / "v.safetensors")
    with pytest.raises(ConfigError, match=said):
        run("compress", *arguments, *paths)


def test_every_codec_of_the_command_exists() -> None:
    assert set(compress_command.CODECS) == set(compress_command.FLAGS)
    assert set(compress_command.CODECS) <= set(CODECS)


def test_wilson_intervals_are_the_textbook_ones() -> None:
    found = wilson(8, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5).low == 0
    assert wilson(5, 5).high == 1


def test_batches_hold_similar_lengths_within_the_limit() -> None:
    dialogues = [Dialogue((1,) * n, 1, scored=False) for n in (9, 2, 5, 30, 3)]
    found = [[len(d.ids) for d in batch] for batch in batches(dialogues, limit=12)]
    assert found == [[2, 3], [5], [9], [30]]
