"""The rows of the comparison as a Markdown table.

Owns: how seeds are put together. Does not know: how rows come about.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.distill.runs import Run

HEAD = (
    "student",
    "steps",
    "seeds",
    "exact match",
    "perplexity",
    "KL to the teacher",
    "trained parameters",
    "peak memory, MB",
    "s a step",
    "GFLOP a token",
)


def table(rows: Mapping[Run, Mapping[str, Any]]) -> str:
    """One line for each student, seeds as mean (least, most)."""
    grouped: dict[Run, list[Mapping[str, Any]]] = defaultdict(list)
    for run, result in rows.items():
        grouped[replace(run, seed=0)].append(result)
    lines = [_line(run, results) for run, results in grouped.items()]
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*head, *lines])


def _line(run: Run, results: list[Mapping[str, Any]]) -> str:
    cells = [name_of(run), str(run.steps), str(len(results))]
    cells.append(_spread([100 * r["accuracy"]["value"] for r in results], "{:.1f} %"))
    cells.append(_spread([r["perplexity"]["value"] for r in results], "{:.3f}"))
    cells.append(_spread([r["kl"]["value"] for r in results], "{:.3f}"))
    if run.steps:
        cells.append(f"{results[0]['trained_parameters'] / 1e6:.1f} M")
        cells.append(_spread([_memory(r) / 1e6 for r in results], "{:.0f}"))
        cells.append(_spread([_seconds(r) for r in results], "{:.3f}"))
        cells.append(f"{results[0]['operations_per_token'] / 1e9:.2f}")
    else:
        cells += ["-"] * 4
    return f"| {' | '.join(cells)} |"


def _memory(result: Mapping[str, Any]) -> float:
    """Bytes: what the GPU held at most, or the process where there is none."""
    return float(result.get("peak_device") or result["peak_rss"])


def _seconds(result: Mapping[str, Any]) -> float:
    """Of a step: on a GPU by the clock, else of the processor."""
    on_gpu = result.get("peak_device") is not None
    return float(result["seconds_per_step" if on_gpu else "cpu_seconds_per_step"])


def name_of(run: Run) -> str:
    """What tells a run from others, seeds apart."""
    parts: list[str] = [run.method]
    if run.rank:
        parts.append(f"rank {run.rank}")
    if run.method in ("neo", "full-kd"):
        parts.append(f"alpha {run.alpha}")
    if run.cached:
        parts.append("cached teacher")
    return ", ".join(parts)


def _spread(values: list[float], form: str) -> str:
    shown = form.format(statistics.fmean(values))
    if len(values) == 1:
        return shown
    return f"{shown} ({form.format(min(values))}, {form.format(max(values))})"
