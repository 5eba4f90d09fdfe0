"""Runs side by side: each is run, a failing one is named and the others go on."""

import sys
from pathlib import Path

import pytest

from benchmarks.results import append_json_lines, json_lines
from benchmarks.side_by_side import run_side_by_side


def test_all_commands_run_and_what_a_failing_one_said_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def touching(name: str) -> list[str]:
        return [sys.executable, "-S", "-c", f"open({str(tmp_path / name)!r}, 'w')"]

    failing = [sys.executable, "-S", "-c", "raise SystemExit('no memory left')"]
    commands = {"first": touching("a"), "bad": failing, "last": touching("b")}
    assert run_side_by_side(commands, jobs=2) == ["bad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert "FAILED\nno memory left" in capsys.readouterr().out


def test_rows_are_added_behind_whole_lines_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_json_lines(file, [1])
    with file.open("a") as cut:
        cut.write("[2,")
    append_json_lines(file, [3])
    assert json_lines(file) == [1, 3]
