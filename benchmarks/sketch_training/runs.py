"""Which runs the comparison is made of, and their rows in a JSON lines file.

Owns: methods, learning rates, ranks, seeds. Does not know: how a run goes.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.results import json_lines
from tsugiki.compress.job import open_base
from tsugiki.model.sketched import KEY

RATES = {
    "full": (3e-5, 1e-4, 3e-4),
    "lora": (5e-4, 1e-3, 2e-3),
    "qlora": (5e-4, 1e-3, 2e-3),
    "sketch": (2e-4, 5e-4, 1e-3),
}
# ranks whose LoRA has as many parameters (16 bits each) as codebooks of so many groups: on
# SmolLM2-135M 305,280 for each rank, 2,488,320 for each group
RANKS = {1: 8, 2: 16, 4: 32, 8: 64}


@dataclass(frozen=True, slots=True)
class Run:
    """One fine-tune."""

    task: str
    method: str  # of RATES; "untouched"
    base: str  # directory
    rank: int = 0  # of a LoRA
    rate: float = 0.0
    steps: int = 0
    batch_tokens: int = 0
    seed: int = 0
    device: str = "cpu"


def runs(args: argparse.Namespace, task: str) -> list[list[Run]]:
    """The methods, each with its rates."""
    shape = {"steps": args.steps, "batch_tokens": args.batch_tokens, "device": args.device}
    start = Run(task, "untouched", args.base, device=args.device)
    found = [[start], *([replace(start, base=base)] for base in args.sketched)]
    ways = [("full", args.base, 0)]
    for base in args.sketched:
        rank = RANKS[_groups(base)]
        ways += [("sketch", base, 0), ("lora", args.base, rank), ("qlora", base, rank)]
    for method, base, rank in ways:
        rates = RATES[method][: args.rates]
        found.append([Run(task, method, base, rank, rate, **shape) for rate in rates])
    return [ways for ways in found if ways[0].method in (*args.methods, "untouched")]


def _groups(base: str) -> int:
    return int(open_base(Path(base)).checkpoint.config["tsugiki"][KEY]["groups"])


def further_seeds(way: Sequence[Run], rows: dict[Run, Any], seeds: int) -> Iterator[Run]:
    """Of the rate with the lowest loss on held-out dialogues."""
    measured = [run for run in way if run in rows and run.method != "untouched"]
    if measured:
        best = min(measured, key=lambda run: float(rows[run]["held_out_loss"]))
        yield from (replace(best, seed=seed) for seed in range(1, seeds))


def known_rows(path: Path) -> dict[Run, dict[str, Any]]:
    """What was measured."""
    return {Run(**row["run"]): row["result"] for row in json_lines(path)}
