"""The rows of the comparison as a Markdown table. Does not know: how rows come about."""

import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.sketch_training.runs import Run

NAMES = ("task", "method", "base", "rate", "seeds", "exact match", "trained", "bytes")
COSTS = ("peak MB", "s a step")


def table(rows: dict[Run, dict[str, Any]]) -> str:
    """Of each method the rate with the lowest held-out loss; seeds as mean (least, most)."""
    ways: dict[Run, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run, result in sorted(rows.items(), key=lambda row: row[0].seed):
        ways[replace(run, rate=0.0, seed=0)][run.rate].append(result)
    head = [f"| {' | '.join(NAMES + COSTS)} |", "|---" * len(NAMES + COSTS) + "|"]
    return "\n".join([*head, *(_line(way, rates) for way, rates in ways.items())])


def _line(way: Run, rates: dict[float, list[dict[str, Any]]]) -> str:
    rate, results = min(rates.items(), key=lambda found: float(found[1][0]["held_out_loss"]))
    shares = [100 * result["accuracy"]["value"] for result in results]
    rank = f" rank {way.rank}" if way.rank else ""
    cells = [way.task, way.method + rank, Path(way.base).name, f"{rate:g}", str(len(results))]
    cells.append(f"{statistics.fmean(shares):.1f} % ({min(shares):.1f}, {max(shares):.1f})")
    cells += [f"{results[0]['parameters'] / 1e6:.2f} M", f"{results[0]['bytes'] / 1e6:.2f} MB"]
    return f"| {' | '.join([*cells, *_costs(way, results)])} |"


def _costs(way: Run, results: list[dict[str, Any]]) -> list[str]:
    if not way.steps:
        return ["-", "-"]
    peak = max(result["peak_memory"] for result in results) / 1e6
    seconds = statistics.median(result["seconds_per_step"] for result in results)
    return [f"{peak:.0f}", f"{seconds:.3f}"]
