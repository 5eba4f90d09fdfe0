"""`tsugiki tune-base`: a sketched base, trained to predict what its original predicts."""

import argparse
from pathlib import Path

from tsugiki.commands.flags import add_device

DTYPES = ("bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki tune-base`."""
    parser.description = (
        "Train the codebooks of a base that compress-base sketch wrote on the predictions of the "
        "model it was made of; the index map stays. Variants of the base before do not fit the new "
        "one. An interrupted run goes on when the same command is given again."
    )
    parser.add_argument("--base", required=True, type=Path, metavar="DIR", help="sketched base")
    parser.add_argument("--teacher", required=True, metavar="DIR", help="the original, or 'demo'")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="plain text, or JSONL"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new directory")
    parser.add_argument("--sequences", type=int, default=256, metavar="N", help="of text (256)")
    parser.add_argument("--sequence-tokens", type=int, default=512, metavar="N", help="(512)")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="default 200")
    parser.add_argument("--learning-rate", type=float, default=1e-4, metavar="F", help="1e-4")
    parser.add_argument("--batch-tokens", type=int, default=2048, metavar="N", help="(2048)")
    parser.add_argument("--held-out", type=int, default=8, metavar="N", help="sequences (8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of batches (0)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    add_device(parser)
    parser.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="N", help="steps; 0: never (50)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, write, say what it brought."""
    import torch

    from tsugiki.compress.progress import Progress
    from tsugiki.compress.tokenizer_check import load_tokenizer
    from tsugiki.compress_base.text import sequences
    from tsugiki.config import default_cache_dir
    from tsugiki.errors import ConfigError
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device
    from tsugiki.tune.sketch_base import FitJob, FitPlan, fit_sketched_base

    sizes = (args.sequences, args.sequence_tokens, args.steps, args.batch_tokens)
    if min(sizes) < 1 or not args.learning_rate > 0:
        raise ConfigError(
            "--sequences, --sequence-tokens, --steps, --batch-tokens, --learning-rate: above 0, "
            "please"
        )
    cache = default_cache_dir()
    job = FitJob(
        sketched=args.base,
        original=resolve_base(args.teacher, cache),
        out=args.out,
        cache_dir=cache,
        dtype=getattr(torch, args.dtype),
        device=choose_device(args.device),
        checkpoint_every=args.checkpoint_every,
    )
    plan = FitPlan(args.steps, args.learning_rate, args.batch_tokens, args.held_out, args.seed)
    ids = sequences(args.data, load_tokenizer(args.base), args.sequences, args.sequence_tokens)
    fitted = fit_sketched_base(job, plan, ids, Progress())
    print(
        f"{args.out}: KL per token from the original, held out: "
        f"{fitted.before:.5f} -> {fitted.after:.5f}"
    )
    return 0
