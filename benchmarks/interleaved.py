"""Two things measured in turn, A B B A ..., and the ratio of their throughputs.

Owns: the order, what was measured before an interruption, ratio and interval. Does not know what
is measured: a cell is a function of a label that answers a summary of tsugiki.bench as plain data.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.results import median_interval

Cell = Callable[[str], dict[str, Any]]
TOLERANCE = 0.97  # a target is met when the interval's unfavourable end is within 3 % of it


@dataclass(frozen=True, slots=True)
class Comparison:
    """A over B; `target`: the least ratio wanted, None when it is only reported."""

    title: str
    a: Cell
    b: Cell
    target: float | None = None
    pairs: int = 7


@dataclass(slots=True)
class Journal:
    """Pairs by title, written to `path` after each, so that an interrupted run goes on."""

    path: Path
    pairs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """What an earlier run of the same build left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def add(self, title: str, pair: dict[str, Any]) -> None:
        """One more pair, on disk before this returns."""
        self.pairs.setdefault(title, []).append(pair)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.pairs))
        part.replace(self.path)

    def whole(self, comparison: Comparison) -> list[dict[str, Any]]:
        """Its pairs, if all have been measured; else none."""
        pairs = self.pairs.get(comparison.title, [])
        return pairs if len(pairs) >= comparison.pairs else []


def compare(comparison: Comparison, journal: Journal) -> dict[str, Any]:
    """Measure the pairs that are missing; the row of the table."""
    done = journal.pairs.setdefault(comparison.title, [])
    for number in range(len(done), comparison.pairs):
        journal.add(comparison.title, _pair(comparison, number))
    return row(comparison, done)


def _pair(comparison: Comparison, number: int) -> dict[str, Any]:
    sides = {"a": comparison.a, "b": comparison.b}
    order = ("a", "b") if number % 2 == 0 else ("b", "a")
    measured = {side: sides[side](f"{comparison.title} {number} {side}") for side in order}
    return {"order": "".join(order), **measured}


def row(comparison: Comparison, pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of both sides, and the ratio of their tokens a second with its 95 % interval."""
    ratios = [pair["a"]["tokens_per_second"] / pair["b"]["tokens_per_second"] for pair in pairs]
    ratio, low, high = median_interval(ratios)
    target = comparison.target
    return {
        "title": comparison.title,
        "a": medians([pair["a"] for pair in pairs]),
        "b": medians([pair["b"] for pair in pairs]),
        "ratio": ratio,
        "interval": [low, high],
        "target": target,
        "met": None if target is None else low >= TOLERANCE * target,
        "ratios": [round(found, 4) for found in ratios],
    }


def medians(summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a table shows of one side."""
    values = {
        "tokens_per_second": [summary["tokens_per_second"] for summary in summaries],
        "ttft_ms": [summary["ttft"]["p50"] for summary in summaries],
        "token_ms": [summary["tpot"]["p50"] for summary in summaries],
        "client_core": [summary["client_core"] for summary in summaries],
    }
    return {name: median_interval(of_one)[0] for name, of_one in values.items()}


HEADER = (
    f"{'A / B':<66}{'A tok/s':>9}{'B tok/s':>9}{'A ms/tok':>9}{'B ms/tok':>9}{'A / B':>8}"
    "  95 % interval  target"
)


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    a, b, (low, high) = row["a"], row["b"], row["interval"]
    verdict = (
        "" if row["target"] is None else f"{row['target']:g} {'met' if row['met'] else 'MISSED'}"
    )
    print(
        f"{row['title']:<66}{a['tokens_per_second']:>9.1f}{b['tokens_per_second']:>9.1f}"
        f"{a['token_ms']:>9.1f}{b['token_ms']:>9.1f}"
        f"{row['ratio']:>8.2f}  [{low:.2f}, {high:.2f}]  {verdict}",
        flush=True,
    )
