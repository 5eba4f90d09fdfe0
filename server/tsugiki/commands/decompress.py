"""`tsugiki decompress FILE`: a variant as an ordinary Hugging Face checkpoint."""

import argparse
from pathlib import Path

DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki decompress`."""
    parser.description = "Write the checkpoint that a variant stands for, loadable by transformers."
    parser.add_argument("file", type=Path, metavar="FILE", help="variant file")
    parser.add_argument("--base", required=True, metavar="DIR", help="its base model, or 'demo'")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new directory")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights (default float32, exact)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the directory; bfloat16 prints what rounding costs."""
    import torch

    from tsugiki.compress.decompress import decompress
    from tsugiki.compress.progress import Progress
    from tsugiki.compress.reconstruct import open_variant
    from tsugiki.config import default_cache_dir

    variant = open_variant(args.file, args.base, default_cache_dir())
    lost = decompress(variant, args.out, getattr(torch, args.dtype), Progress())
    print(f"{args.out}: {args.dtype}, from {variant.header.digest}")
    if args.dtype != "float32":
        print(
            f"rounding to {args.dtype} adds an error of {lost.relative_error:.1%} of the variant's "
            "own change; --dtype float32 adds none"
        )
    return 0
