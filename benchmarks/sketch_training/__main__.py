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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.results import append_json_lines
from benchmarks.sketch_training.one import measure
from benchmarks.sketch_training.runs import RATES, Run, further_seeds, known_rows, runs
from benchmarks.sketch_training.table import table

ROWS = Path(__file__).parents[1] / "results" / "sketch_training.rows.jsonl"


def in_a_process(run: Run, args: argparse.Namespace) -> None:
    """Measure the run, add its row to the file."""
    files = next(files for files in args.task if files[0] == run.task)
    command = [sys.executable, "-m", "benchmarks.sketch_training", "--one", json.dumps(asdict(run))]
    command += ["--task", *files, "--rows", str(args.rows), "--test-lines", str(args.test_lines)]
    subprocess.run(command, check=True)


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
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_all(args: argparse.Namespace) -> None:
    """Every rate of every method, then further seeds of the best."""
    ways = [way for task, *_ in args.task for way in runs(args, task)]
    with ThreadPoolExecutor(args.jobs) as pool:
        known = known_rows(args.rows)
        first = [run for way in ways for run in way if run not in known]
        list(pool.map(partial(in_a_process, args=args), first))
        known = known_rows(args.rows)
        rest = [run for way in ways for run in further_seeds(way, known, args.seeds)]
        missing = [run for run in rest if run not in known]
        list(pool.map(partial(in_a_process, args=args), missing))


def main() -> None:
    """Measure what is missing, print the table."""
    args = parse_arguments()
    if args.one is not None:
        run, (_, data, test) = Run(**json.loads(args.one)), args.task[0]
        result = measure(run, Path(data), Path(test), args.test_lines or None)
        append_json_lines(args.rows, [{"run": asdict(run), "result": result}])
        return
    if not args.table:
        measure_all(args)
    print(table(known_rows(args.rows)))


if __name__ == "__main__":
    main()
