"""`tsugiki distill`: LLM-Neo, a LoRA variant trained on what a teacher expects."""

import argparse
from pathlib import Path
from typing import Any

from tsugiki.commands.flags import add_device

DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("forward", "reverse")
INITS = ("default", "gaussian", "orthogonal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki distill`."""
    parser.description = (
        "Train a LoRA branch of a student with (1 - alpha) cross-entropy + alpha KL from a teacher "
        "of the same tokenizer, and write it as a variant of the student. An interrupted run goes "
        "on when the same command is given again."
    )
    for flag, text in (
        ("--teacher", "model that knows more"),
        ("--student", "base of the variant"),
    ):
        parser.add_argument(flag, required=True, metavar="DIR", help=f"{text}, or 'demo'")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="JSONL of prompt and answer"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="x.safetensors")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="write a merged checkpoint too")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="write the PEFT adapter too")
    _add_loss_arguments(parser)
    _add_lora_arguments(parser)
    _add_training_arguments(parser)
    add_device(parser)


def _add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--alpha", type=float, default=0.5, metavar="A", help="weight of the KL (default 0.5)"
    )
    group.add_argument(
        "--kl",
        choices=DIRECTIONS,
        default="forward",
        help="forward: KL(teacher || student), the default; reverse: KL(student || teacher)",
    )
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default 1")
    group.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="the teacher's K likeliest tokens, the rest as one (default: all; 32 from a cache)",
    )
    group.add_argument(
        "--teacher-cache",
        type=Path,
        metavar="DIR",
        help="keep the teacher's top K here: it leaves memory before the student comes",
    )


def _add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("LoRA branch")
    group.add_argument("--rank", type=int, default=64, metavar="R", help="default 64")
    group.add_argument(
        "--lora-alpha", type=int, metavar="N", help="its scale times the rank (default 2 R)"
    )
    group.add_argument(
        "--targets", default="", metavar="NAMES", help="q_proj,v_proj ... (default: all linears)"
    )
    group.add_argument("--rslora", action="store_true", help="scale by the square root of the rank")
    group.add_argument("--init", choices=INITS, default="default", help="of the factor A")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=200, metavar="N", help="default 200")
    group.add_argument(
        "--batch-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="of one pass, padded, less what all prompts begin with (default 1024)",
    )
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="passes of one step (default 1)"
    )
    group.add_argument(
        "--learning-rate", type=float, default=2e-4, metavar="F", help="peak (default 2e-4)"
    )
    group.add_argument(
        "--warmup", type=float, default=0.1, metavar="F", help="share of the steps (default 0.1)"
    )
    group.add_argument("--max-tokens", type=int, default=512, metavar="N", help="of one dialogue")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    group.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    group.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time"
    )
    group.add_argument(
        "--checkpoint-every", type=int, default=50, metavar="N", help="steps (default 50; 0: never)"
    )
    group.add_argument("--log", type=Path, metavar="FILE", help="write losses as JSONL")


def run(args: argparse.Namespace) -> int:
    """Distil, write, say what it brought."""
    from tsugiki.compress.progress import Progress
    from tsugiki.distill.job import run_distill

    result = run_distill(job_of(args), plan_of(args), Progress())
    print(f"{args.out}: {result.header.file_bytes} bytes, {result.header.digest}")
    for name, before in result.before.items():
        print(f"{name} per answer token, held out: {before:.5f} -> {result.after[name]:.5f}")
    return 0


def job_of(args: argparse.Namespace) -> Any:
    """Which files."""
    import torch

    from tsugiki.config import default_cache_dir
    from tsugiki.distill.job import DistillJob
    from tsugiki.model.demo_base import resolve_base
    from tsugiki.model.device import choose_device

    cache_dir = default_cache_dir()
    return DistillJob(
        teacher=resolve_base(args.teacher, cache_dir),
        student=resolve_base(args.student, cache_dir),
        data=args.data,
        out=args.out,
        cache_dir=cache_dir,
        merge=args.merge,
        adapter=args.adapter,
        teacher_cache=args.teacher_cache,
        log=args.log,
        dtype=getattr(torch, args.dtype),
        device=choose_device(args.device),
        max_tokens=args.max_tokens,
        gradient_checkpointing=args.gradient_checkpointing,
        checkpoint_every=args.checkpoint_every,
    )


def plan_of(args: argparse.Namespace) -> Any:
    """What is learned, and how."""
    from tsugiki.distill.job import DistillPlan
    from tsugiki.distill.lora_student import LoraSettings
    from tsugiki.distill.trainer import TrainingPlan

    targets = tuple(name for name in args.targets.split(",") if name)
    return DistillPlan(
        training=TrainingPlan(steps=args.steps, accumulate=args.accumulate, warmup=args.warmup),
        lora=LoraSettings(args.rank, args.lora_alpha, targets, args.rslora, args.init),
        learning_rate=args.learning_rate,
        alpha=args.alpha,
        direction=args.kl,
        temperature=args.temperature,
        top_k=args.top_k,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
    )
