"""Pairs measured in turn: order, resumption, ratio, target."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.interleaved import Cell, Comparison, Journal, compare


class Clock:
    """Cells whose throughput is fixed; remembers in which order they were measured."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def cell(self, tokens_per_second: float) -> Cell:
        def measure(label: str) -> dict[str, Any]:
            self.labels.append(label)
            middle = {"p50": 1.0}
            return {
                "tokens_per_second": tokens_per_second,
                "ttft": middle,
                "tpot": middle,
                "client_core": 0.01,
            }

        return measure


@pytest.fixture
def clock() -> Clock:
    return Clock()


def comparison(clock: Clock, target: float | None = None, pairs: int = 3) -> Comparison:
    return Comparison("a / b", clock.cell(150.0), clock.cell(100.0), target, pairs)


def test_pairs_are_measured_a_b_b_a(clock: Clock, tmp_path: Path) -> None:
    row = compare(comparison(clock), Journal.open(tmp_path / "journal.json"))
    assert [label[-1] for label in clock.labels] == ["a", "b", "b", "a", "a", "b"]
    assert len(set(clock.labels)) == 6
    assert (row["ratio"], row["interval"]) == (1.5, [1.5, 1.5])


def test_an_interrupted_run_measures_only_what_is_missing(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    compare(comparison(clock, pairs=2), Journal.open(path))
    assert not Journal.open(path).whole(comparison(clock, pairs=3))
    clock.labels.clear()
    row = compare(comparison(clock, pairs=3), Journal.open(path))
    assert clock.labels == ["a / b 2 a", "a / b 2 b"]
    assert len(Journal.open(path).whole(comparison(clock, pairs=3))) == 3
    assert row["ratios"] == [1.5] * 3


@pytest.mark.parametrize(("target", "met"), [(None, None), (1.5, True), (1.54, True), (1.6, False)])
def test_a_target_is_met_within_three_percent(
    clock: Clock, tmp_path: Path, target: float | None, met: bool | None
) -> None:
    row = compare(comparison(clock, target), Journal.open(tmp_path / "journal.json"))
    assert row["met"] is met
