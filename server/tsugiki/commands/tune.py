"""`tsugiki tune CODEC`: a variant trained in the compressed space of its base."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.commands.flags import add_device, refuse_foreign_flags

if TYPE_CHECKING:
    from tsugiki.tune.compressed import Tuned, TuneJob

CODECS = ("sketch", "caldera")
# The codec's own flags; another codec's flag is a mistake and is refused, not ignored.
FLAGS: dict[str, tuple[str, ...]] = {"sketch": ("value_bits",), "caldera": ("rank", "factor_bits")}
DTYPES = ("bfloat16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki tune`."""
    parser.description = (
        "Train a variant of a compressed base. sketch: the codebooks of a base that compress-base "
        "sketch wrote (SketchTune). caldera: the low-rank factors of a base that compress-base "
        "caldera wrote. An interrupted run goes on when the same command is given again."
    )
    parser.add_argument("codec", choices=CODECS, metavar="CODEC", help=" | ".join(CODECS))
    parser.add_argument("--base", required=True, metavar="DIR", help="the compressed base")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="JSONL of prompt and answer"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="x.safetensors")
    parser.add_argument("--log", type=Path, metavar="FILE", help="losses as JSONL, one line a step")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="default 300")
    parser.add_argument("--learning-rate", type=float, default=2e-4, metavar="F", help="2e-4")
    parser.add_argument(
        "--batch-tokens", type=int, default=1024, metavar="N", help="of one pass (1024)"
    )
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="passes a step (1)")
    parser.add_argument("--warmup", type=float, default=0.1, metavar="F", help="of steps (0.1)")
    parser.add_argument(
        "--value-bits", type=int, metavar="B", help="sketch, of a change: 4, 8 or 16 (8)"
    )
    parser.add_argument("--rank", type=int, metavar="K", help="caldera, of the factors (32)")
    parser.add_argument("--factor-bits", type=int, metavar="B", help="caldera: 4, 8 or 16 (4)")
    parser.add_argument("--held-out", type=int, default=64, metavar="N", help="dialogues (64)")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of one (512)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of batches (0)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    add_device(parser)
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third slower"
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="N", help="steps; 0: never (50)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, write, say what it brought."""
    import torch

    from tsugiki.config import default_cache_dir
    from tsugiki.errors import ConfigError
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device
    from tsugiki.tune.compressed import TuneJob

    refuse_foreign_flags(args, FLAGS)
    positive = (args.steps, args.batch_tokens, args.accumulate, args.learning_rate)
    if not all(value > 0 for value in positive):
        raise ConfigError("--steps, --batch-tokens, --accumulate, --learning-rate: above 0, please")
    if any(bits not in (None, 4, 8, 16) for bits in (args.value_bits, args.factor_bits)):
        raise ConfigError("--value-bits and --factor-bits are 4, 8 or 16")
    cache = default_cache_dir()
    job = TuneJob(
        base=resolve_base(args.base, cache),
        data=args.data,
        out=args.out,
        cache_dir=cache,
        log=args.log,
        dtype=getattr(torch, args.dtype),
        device=choose_device(args.device),
        max_tokens=args.max_tokens,
        gradient_checkpointing=args.gradient_checkpointing,
        checkpoint_every=args.checkpoint_every,
    )
    tuned = _tune(args, job)
    print(
        f"{args.out}: {tuned.header.file_bytes} bytes for {tuned.trained_parameters} trained "
        f"parameters, {tuned.header.digest}\n"
        f"loss per answer token, held out: {tuned.before:.4f} -> {tuned.after:.4f}"
    )
    return 0


def _tune(args: argparse.Namespace, job: "TuneJob") -> "Tuned":
    from tsugiki.compress.progress import Progress
    from tsugiki.distill.trainer import TrainingPlan
    from tsugiki.tune.caldera import CalderaTunePlan, tune_caldera
    from tsugiki.tune.sketch import SketchTunePlan, tune_sketch

    own = {name: getattr(args, name) for name in FLAGS[args.codec]}
    asked: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    asked |= {
        "training": TrainingPlan(
            args.steps, args.accumulate, args.warmup, betas=(0.9, 0.999), decay="linear"
        ),
        "learning_rate": args.learning_rate,
        "batch_tokens": args.batch_tokens,
        "held_out": args.held_out,
        "seed": args.seed,
    }
    if args.codec == "sketch":
        return tune_sketch(job, SketchTunePlan(**asked), Progress())
    return tune_caldera(job, CalderaTunePlan(**asked), Progress())
