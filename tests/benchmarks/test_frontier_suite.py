"""The suite of the frontier trains each kind once and shares its codecs out to processes."""

import sys
from pathlib import Path

import pytest

from benchmarks.frontier import suite
from benchmarks.frontier.codecs import methods
from benchmarks.frontier.fine_tunes import KINDS
from benchmarks.frontier.rows import read


def test_no_codec_is_measured_twice_and_ours_has_three_draws() -> None:
    codecs = [codec for _, group in suite.GROUPS.values() for codec in group]
    assert len(codecs) == len(set(codecs))
    assert set(codecs) <= set(methods())
    assert suite.GROUPS["ours"] == (3, ("ours",))


def test_each_kind_is_trained_and_measured_on_the_device_asked_for(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--base", tiny_base, "--data-dir", tmp_path, "--fine-tunes", tmp_path / "ft"]
    given += ["--out", tmp_path / "rows.jsonl", "--device", "cpu", "--steps", 3, "--sizes", 0.5]
    monkeypatch.setattr(sys, "argv", ["suite", *map(str, given)])
    args = suite.parse_arguments()
    commands = suite.trainings(args, tiny_base)
    assert list(commands) == [f"training {kind}" for kind in KINDS]
    assert all("--steps 3" in " ".join(command) for command in commands.values())
    measured = suite.measurements(args, tiny_base)
    assert len(measured) == len(KINDS) * len(suite.GROUPS)
    assert all("--device cpu" in " ".join(command) for command in measured.values())
    assert list(read(args.out)) == []
