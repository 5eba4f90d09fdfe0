"""All kinds of fine-tunes, made and measured by one command; interrupted, it goes on.

    python -m benchmarks.frontier.suite --base demo --data-dir DATA --fine-tunes ft \\
        --out rows.jsonl --device cuda --jobs 12

First the fine-tunes that are missing are trained (fine_tunes.py says what DATA holds), then every
codec, size and seed that the result file lacks is measured: three processes for each fine-tune,
`--jobs` at a time. Ours has three seeds of its masks, peers one.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.frontier.codecs import PEERS, STORED_PEERS
from benchmarks.frontier.fine_tunes import KINDS
from benchmarks.frontier.rows import read
from benchmarks.frontier.table import markdown, points
from benchmarks.side_by_side import run_side_by_side
from tsugiki.config import DEVICES, default_cache_dir
from tsugiki.model.demo_base import resolve_base

GROUPS: Mapping[str, tuple[int, Sequence[str]]] = {  # of codecs, with as many seeds of their masks
    "ours": (3, ("ours",)),
    "stored peers": (1, STORED_PEERS),
    "peers": (1, PEERS),
}


def trainings(args: argparse.Namespace, base: Path) -> dict[str, list[str]]:
    """A command for each fine-tune; one that is there already ends at once."""
    common = ["--base", str(base), "--data-dir", str(args.data_dir), "--out", str(args.fine_tunes)]
    common += ["--device", args.device]
    if args.steps is not None:
        common += ["--steps", str(args.steps)]
    module = [sys.executable, "-m", "benchmarks.frontier.fine_tunes"]
    return {f"training {kind}": [*module, kind, *common] for kind in args.kinds}


def measurements(args: argparse.Namespace, base: Path) -> dict[str, list[str]]:
    """A command for each fine-tune and group of codecs."""
    found = {}
    for group, (seeds, codecs) in GROUPS.items():
        for kind in args.kinds:
            made = args.fine_tunes / kind
            command = [sys.executable, "-m", "benchmarks.frontier", "--base", str(base)]
            command += ["--tuned", str(made), "--data", f"{made}.test.jsonl"]
            command += ["--calibration", f"{made}.calibration.jsonl", "--out", str(args.out)]
            command += ["--codecs", *codecs, "--seeds", str(seeds), "--device", args.device]
            command += ["--limit", str(args.limit), "--own", str(args.own)]
            command += ["--tokens", str(args.tokens)]
            if args.sizes:
                command += ["--sizes", *map(str, args.sizes)]
            found[f"{kind}, {group}"] = command
    return found


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo", help="Hugging Face directory, or 'demo'")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--fine-tunes", type=Path, required=True, help="folder, made if missing")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; is continued")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--steps", type=int, help="of training; default: each kind's")
    parser.add_argument("--sizes", nargs="+", type=float, metavar="B/P")
    parser.add_argument("--limit", type=int, default=1000, help="test examples")
    parser.add_argument("--own", type=int, default=16, help="of them, those answered at length")
    parser.add_argument("--tokens", type=int, default=3200, help="of answers compared, at most")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    return parser.parse_args()


def main() -> int:
    """Train, measure, print the tables; how many commands failed."""
    args = parse_arguments()
    base = resolve_base(args.base, default_cache_dir())
    failed = run_side_by_side(trainings(args, base), args.jobs)
    failed += run_side_by_side(measurements(args, base), args.jobs)
    for kind, sizes in points(read(args.out)).items():
        print(markdown(kind, sizes))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
