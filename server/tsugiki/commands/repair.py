"""`tsugiki repair FILE`: a short distillation of a compressed variant against its fine-tune."""

import argparse
from pathlib import Path

from tsugiki.commands.flags import add_device

DTYPES = ("bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki repair`."""
    parser.description = (
        "Train steps, biases, low-rank factors and norms of a variant file so that it answers like "
        "its uncompressed fine-tune. The bytes of the tensors stay as many; codes and masks stay "
        "as they are. An interrupted run goes on when the same command is given again."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="variant file")
    parser.add_argument("--base", required=True, metavar="DIR", help="its base model, or 'demo'")
    parser.add_argument(
        "--teacher", required=True, type=Path, metavar="DIR", help="its uncompressed fine-tune"
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="JSONL, as it was trained on"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="x.safetensors")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--batch-tokens", type=int, default=1024, metavar="N", help="default 1024")
    parser.add_argument(
        "--learning-rate", type=float, default=1.0, metavar="F", help="factor on the defaults"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=1.0,
        metavar="A",
        help="weight of the KL, the rest is cross-entropy with the answers (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of batches; default 0")
    parser.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="N", help="steps (default 50; 0: never)"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="write losses as JSONL")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Repair, write, say what it brought."""
    import torch

    from tsugiki.compress.progress import Progress
    from tsugiki.config import default_cache_dir
    from tsugiki.errors import ConfigError
    from tsugiki.model.device import choose_device
    from tsugiki.tune.job import RepairJob, run_repair
    from tsugiki.tune.repair import RepairPlan

    if args.steps < 1 or args.batch_tokens < 1 or not args.learning_rate > 0:
        raise ConfigError("--steps, --batch-tokens and --learning-rate must be above 0")
    if not 0 <= args.alpha <= 1:
        raise ConfigError(f"--alpha is {args.alpha}; it must be from 0 to 1")
    plan = RepairPlan(
        steps=args.steps,
        batch_tokens=args.batch_tokens,
        learning_rate=args.learning_rate,
        alpha=args.alpha,
        seed=args.seed,
    )
    job = RepairJob(
        file=args.file,
        base=args.base,
        teacher=args.teacher,
        data=args.data,
        out=args.out,
        cache_dir=default_cache_dir(),
        dtype=getattr(torch, args.dtype),
        device=choose_device(args.device),
        log=args.log,
        checkpoint_every=args.checkpoint_every,
    )
    result, header = run_repair(job, plan, Progress())
    print(
        f"{args.out}: {header.file_bytes} bytes, {header.digest}\n"
        f"KL to the fine-tune per answer token, held out: {result.kl_before:.5f} -> "
        f"{result.kl_after:.5f}"
    )
    return 0
