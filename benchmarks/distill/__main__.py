"""Measure every run that the result file does not hold yet, each in a process of its own.

    python -m benchmarks.distill --student PRUNED --teacher ft/banking77 \\
        --data banking77.train.jsonl --test banking77.test.jsonl --out rows.jsonl

`--make-from BASE` makes teacher and student first where they are missing. `--device cuda --jobs 4`
has four runs share one GPU: their scores and their memory are their own, their seconds are not, and
each row says how many there were. `--table` prints what is there as Markdown and measures nothing.

On a CPU, seconds are CPU seconds of one thread (OMP_NUM_THREADS=1) and memory is the peak of the
process while it trains, teacher included; on a GPU, seconds are those of a median step and memory
is the peak of what torch allocated there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.distill.models import Recipe, make_student, make_teacher
from benchmarks.distill.one import CACHE
from benchmarks.distill.runs import Run, Sizes, measured, runs
from benchmarks.distill.table import name_of, table
from benchmarks.side_by_side import run_side_by_side
from tsugiki.config import DEVICES, default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device


def prepare(args: argparse.Namespace, device: torch.device) -> None:
    """Make the models."""
    base = resolve_base(args.make_from, default_cache_dir())
    recipe = Recipe(base, args.data, args.teacher_steps, args.student_layers)
    make_student(recipe, args.student)
    make_teacher(recipe, args.teacher, device)


def measure(missing: Sequence[Run], args: argparse.Namespace, device: torch.device) -> list[str]:
    """Have every run add its row; the names of those that failed."""
    if any(run.cached for run in missing):
        failed = run_side_by_side({CACHE: _command(CACHE, args, device)}, 1)
        if failed:
            return failed
    commands = {
        f"{name_of(run)}, seed {run.seed}": _command(json.dumps(asdict(run)), args, device)
        for run in missing
    }
    return run_side_by_side(commands, args.jobs)


def _command(run: str, args: argparse.Namespace, device: torch.device) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.distill.one", "--run", run]
    command += ["--device", device.type, "--jobs", str(args.jobs)]
    for name in ("teacher", "student", "data", "test", "teacher_cache", "out"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return command


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="JSON lines, gone on with")
    parser.add_argument("--table", action="store_true", help="print what is there")
    for flag in ("--teacher", "--student", "--data", "--test"):
        parser.add_argument(flag, type=Path)
    parser.add_argument("--make-from", metavar="BASE", help="make teacher and student of this base")
    parser.add_argument("--teacher-steps", type=int, default=274)
    parser.add_argument("--student-layers", type=int, default=20)
    parser.add_argument("--teacher-cache", type=Path, default=Path("teacher-cache"))
    parser.add_argument("--steps", type=int, default=140, help="of about 1,000 tokens each")
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", action="store_true", help="ranks and alphas too")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    return parser.parse_args()


def main() -> int:
    """Go through the runs; print the table."""
    args = parse_arguments()
    failed: list[str] = []
    if not args.table:
        device = choose_device(args.device)
        if args.make_from is not None:
            prepare(args, device)
        wanted = runs(Sizes(args.steps, args.test_lines, args.seeds, args.grid))
        known = measured(args.out)
        failed = measure([run for run in wanted if run not in known], args, device)
    print(table(measured(args.out)))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
