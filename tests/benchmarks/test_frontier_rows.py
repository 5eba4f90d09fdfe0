"""A run of the frontier goes on where it was, and its tables rank by divergence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.frontier import __main__ as frontier
from benchmarks.frontier.rows import Row, append, read
from benchmarks.frontier.subject import Texts
from benchmarks.frontier.table import markdown, plot, points
from tsugiki.compress.reference import MAX_ANSWER_TOKENS

GOLD = {
    "kl": {"value": 0.01, "low": 0.0, "high": 0.02},
    "top1_agreement": {"value": 0.99, "low": 0.9, "high": 1.0},
    "accuracy": {"tuned": {"value": 0.8}, "variant": {"value": 0.76}},
}


def made(codec: str, seed: int, kl: float, bits: float = 0.0625) -> Row:
    gold = {**GOLD, "kl": {"value": kl, "low": kl, "high": kl}}
    return Row("ft", codec, 0.0625, seed, 100, 0, bits, bits / 4, gold, None, 1.0, {})


def test_an_unfinished_last_line_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, made("a", 0, 0.1))
    with file.open("a") as open_file:
        open_file.write('{"fine_tune": "ft", "cod')
    assert [row.codec for row in read(file)] == ["a"]
    append(file, made("b", 0, 0.2))
    assert [row.key for row in read(file)] == [
        ("ft", codec, 0.0625, 0, 100, 0, MAX_ANSWER_TOKENS) for codec in "ab"
    ]


def test_the_table_ranks_by_the_mean_over_seeds_and_shows_both_ratios(tmp_path: Path) -> None:
    rows = [made("worse", 0, 0.03), made("better", 0, 0.01), made("better", 1, 0.02)]
    absent = Row("ft", "none", 0.0625, 0, 100, 0, 0.0, 0.0, None, None, 1.0, {})
    sizes = points([*rows, absent])["ft"]
    text = markdown("ft", sizes)
    assert [p.codec for p in sizes[0.0625]] == ["better", "worse"]
    assert "| better | 0.0625 | 256x | 1024x | 0.0150 (0.0100, 0.0200) |" in text
    assert "| 76.0% | 95.0% | 9.4 |" in text
    assert plot("ft", sizes, tmp_path).stat().st_size > 1000


def test_codecs_without_randomness_are_measured_once() -> None:
    found = list(frontier.cases("ft", ["ours", "lora"], [0.5], 3, Texts(100, 4)))
    assert [(key.codec, key.seed) for key in found] == [
        *(("ours", seed) for seed in range(3)),
        ("lora", 0),
    ]
    assert all(key[4:] == (100, 4, MAX_ANSWER_TOKENS) for key in found)


def test_a_run_measures_what_the_file_does_not_hold_yet(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    data, out = tmp_path / "data.jsonl", tmp_path / "rows.jsonl"
    lines = [{"prompt": f"How many apples? {n}", "answer": f"#### {n}"} for n in range(4)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*sizes: str) -> list[Row]:
        given: list[Any] = ["--base", tiny_base, "--tuned", tiny_tuned, "--data", data]
        given += ["--calibration", data, "--out", out, "--limit", 3, "--own", 1, "--seeds", 1]
        given += ["--codecs", "ours", "dare", "--sizes", *sizes]
        monkeypatch.setattr(sys, "argv", ["frontier", *map(str, given)])
        frontier.main()
        return list(read(out))

    first = run("2")
    assert [(row.codec, row.size) for row in first] == [("ours", 2.0), ("dare", 2.0)]
    assert all(row.own is not None and row.own["answer_tokens"] == 200 for row in first)
    again = run("2", "0.5")
    assert again[:2] == first
    assert [row.size for row in again[2:]] == [0.5, 0.5]
    ours = {row.size: row.kl for row in again if row.codec == "ours"}
    assert ours[2.0] < ours[0.5]  # type: ignore[operator]
