"""`tsugiki prune`: a shallower student of the same tokenizer."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki prune`."""
    parser.description = (
        "Leave layers of a base out: with --data those that turn their input least, without it the "
        "deep ones before the last. The student needs training (tsugiki distill) to be of use."
    )
    parser.add_argument("--base", required=True, metavar="DIR", help="base model, or 'demo'")
    parser.add_argument("--layers", required=True, type=int, metavar="N", help="layers to keep")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new directory")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL, 64 examples are used")


def run(args: argparse.Namespace) -> int:
    """Write the directory and say what is left."""
    from tsugiki.compress.progress import Progress
    from tsugiki.config import default_cache_dir
    from tsugiki.distill.prune import prune
    from tsugiki.model.demo_base import resolve_base

    base = resolve_base(args.base, default_cache_dir())
    result = prune(base, args.layers, args.out, args.data, Progress())
    print(f"{args.out}: layers {', '.join(map(str, result.kept))}")
    if result.influence is not None:
        shown = " ".join(f"{value:.3f}" for value in result.influence)
        print(f"influence of the base's layers: {shown}")
    return 0
