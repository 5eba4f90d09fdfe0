"""Is a fine-tune made of codebooks as good as one of all weights, or as LoRA of equal bytes?

Methods, each on the same batches: all weights of the base (`full`), LoRA on the base (`lora`), LoRA
on the sketched base (`qlora`: what QLoRA does, on our 4-bit base), and its codebooks (`sketch`,
scored as stored, 8 bits a difference). Each method's learning rate is the one with the lowest loss
on dialogues taken off the training data; further seeds run at that rate. Every run is a process of
its own, so that its peak of memory is its own; a row that is there is not measured again.

    python -m benchmarks.sketch_training --base demo --sketched BASE-4-1 BASE-4-4 \\
        --task banking77 banking77.train.jsonl banking77.test.jsonl --device cuda --jobs 4
    python -m benchmarks.sketch_training --table
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.sketch_training.runs import RATES, Run, further_seeds, known_rows, runs
from benchmarks.sketch_training.table import table

ROWS = Path(__file__).parents[1] / "results" / "sketch_training.rows.jsonl"


def in_a_process(run: Run, args: argparse.Namespace) -> None:
    """Measure the run, add its row to the file; others go on where one fails."""
    _, data, test = next(files for files in args.task if files[0] == run.task)
    command = [sys.executable, "-m", "benchmarks.sketch_training.one", "--data", data]
    command += ["--run", json.dumps(asdict(run)), "--test", test, "--rows", str(args.rows)]
    subprocess.run([*command, "--test-lines", str(args.test_lines)], check=False)


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--sketched", nargs="+", default=[], help="bases of compress-base sketch")
    task = ("NAME", "TRAIN", "TEST")
    parser.add_argument("--task", nargs=3, action="append", default=[], metavar=task)
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--rates", type=int, default=3, help="learning rates of each method")
    parser.add_argument("--seeds", type=int, default=3, help="at the best rate")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=4000, help="padded, of one step")
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="print what is there")
    return parser.parse_args()


def measure_all(args: argparse.Namespace) -> list[Run]:
    """Every rate of every method, then further seeds of the best; returns the runs that failed."""
    ways = [way for task, *_ in args.task for way in runs(args, task)]
    wanted = [run for way in ways for run in way]
    measure_missing(wanted, args)
    known = known_rows(args.rows)
    wanted += [run for way in ways for run in further_seeds(way, known, args.seeds)]
    measure_missing(wanted, args)
    known = known_rows(args.rows)
    return [run for run in wanted if run not in known]


def measure_missing(wanted: Sequence[Run], args: argparse.Namespace) -> None:
    """Those that have no row yet, `args.jobs` at a time."""
    known = known_rows(args.rows)
    missing = [run for run in wanted if run not in known]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(partial(in_a_process, args=args), missing))


def main() -> None:
    """Measure what is missing, print the table."""
    args = parse_arguments()
    failed = [] if args.table else measure_all(args)
    print(table(known_rows(args.rows)))
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, {failed[0]} first; their errors are above")


if __name__ == "__main__":
    main()
