"""Which runs the comparison is made of, and their rows in a JSON lines file.

Owns: the grid, what makes two rows the same measurement. Does not know: how a run goes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.results import append_json_lines, json_lines

Method = Literal["teacher", "untouched", "sft-lora", "full-kd", "neo"]
RANKS = (16, 64, 128)
ALPHAS = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Run:
    """One student. What a method does not have is at its default, so that equal runs are equal."""

    method: Method
    steps: int
    test_lines: int  # of the score; 0: all
    rank: int = 0
    alpha: float = 0.0
    seed: int = 0
    cached: bool = False  # the teacher's top 32 from disk instead of a teacher in memory

    @property
    def learning_rate(self) -> float:
        """LoRA takes ten times the rate of full training (the guideline of arXiv 2411.06839)."""
        return 1e-4 if self.method == "full-kd" else 1e-3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the grid, and how long."""

    steps: int
    test_lines: int
    seeds: int
    grid: bool


def runs(sizes: Sizes) -> Iterator[Run]:
    """What is compared with; the headline, seed by seed; the cached teacher; ranks and alphas."""
    untouched = Run("untouched", 0, sizes.test_lines)
    yield replace(untouched, method="teacher")
    yield untouched
    neo = replace(untouched, method="neo", steps=sizes.steps, rank=64, alpha=0.5)
    for seed in range(sizes.seeds):
        yield replace(neo, seed=seed)
        yield replace(neo, method="sft-lora", alpha=0.0, seed=seed)
        yield replace(neo, method="full-kd", rank=0, seed=seed)
    yield replace(neo, cached=True)
    if sizes.grid:
        for rank in RANKS:
            for alpha in ALPHAS:
                if (rank, alpha) != (neo.rank, neo.alpha):
                    yield replace(neo, rank=rank, alpha=alpha)


def measured(path: Path) -> dict[Run, dict[str, Any]]:
    """Results by run; none where there is no file. A line that a kill cut short is left out."""
    return {Run(**row["run"]): row["result"] for row in json_lines(path)}


def append(path: Path, run: Run, result: dict[str, Any]) -> None:
    """Add a row."""
    append_json_lines(path, [{"run": asdict(run), "result": result}])
