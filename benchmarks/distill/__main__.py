"""Measure every run that the result file does not hold yet, each in a process of its own.

    python -m benchmarks.distill --student PRUNED --teacher ft/banking77 \\
        --data banking77.train.jsonl --test banking77.test.jsonl --out rows.jsonl

Seconds are CPU seconds of one thread (OMP_NUM_THREADS=1), memory is the peak of the process while
it trains, teacher included. `--table` prints what is there as Markdown and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.distill.runs import Run, Sizes, append, measured, runs
from benchmarks.distill.table import table
from benchmarks.results import machine


def measure(run: Run, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The result of one run."""
    if run.cached:
        _one("cache", args, scratch)
    _one(json.dumps(asdict(run)), args, scratch)
    result: dict[str, Any] = json.loads(scratch.read_text(encoding="utf-8"))
    return {**result, "machine": machine()}


def _one(run: str, args: argparse.Namespace, out: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.distill.one", "--run", run, "--out", str(out)]
    for name in ("teacher", "student", "data", "test", "teacher_cache"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    subprocess.run(command, check=True)


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="JSON lines, gone on with")
    parser.add_argument("--table", action="store_true", help="print what is there")
    for flag in ("--teacher", "--student", "--data", "--test"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--teacher-cache", type=Path, default=Path("teacher-cache"))
    parser.add_argument("--steps", type=int, default=140, help="of about 1,000 tokens each")
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", action="store_true", help="ranks and alphas too")
    return parser.parse_args()


def main() -> None:
    """Go through the runs; print the table."""
    args = parse_arguments()
    sizes = Sizes(args.steps, args.test_lines, args.seeds, args.grid)
    if not args.table:
        with tempfile.TemporaryDirectory() as folder:
            for run in runs(sizes):
                if run not in measured(args.out):
                    print(run, flush=True)
                    append(args.out, run, measure(run, args, Path(folder) / "result.json"))
    print(table(measured(args.out)))


if __name__ == "__main__":
    main()
