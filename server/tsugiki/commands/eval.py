"""`tsugiki eval`: how close a variant is to its fine-tune, in plain transformers."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.commands.flags import add_device

if TYPE_CHECKING:
    from tsugiki.compress.evaluate import Estimate, Evaluation

DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tsugiki eval`."""
    parser.description = (
        "Compare a variant with the fine-tune it was made from, teacher-forced on the answers of a "
        "JSONL file: KL, top-1 agreement, perplexities, exact match; 95 % intervals."
    )
    parser.add_argument("--base", required=True, metavar="DIR", help="base model, or 'demo'")
    parser.add_argument("--variant", required=True, type=Path, metavar="FILE", help="variant file")
    parser.add_argument("--tuned", required=True, type=Path, metavar="DIR", help="fine-tune")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="JSONL")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N examples")
    parser.add_argument("--with-base", action="store_true", help="score the plain base too")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default float32")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(args: argparse.Namespace) -> int:
    """Load the models, score them, print."""
    from dataclasses import asdict

    from tsugiki.compress.evaluate import evaluate
    from tsugiki.compress.progress import Progress

    progress = Progress()
    models, dialogues = _prepare(args, progress)
    result = evaluate(models, dialogues, progress)
    print(json.dumps(asdict(result), indent=1) if args.json else render(result))
    return 0


def _prepare(args: argparse.Namespace, progress: Any) -> tuple[dict[str, Any], list[Any]]:
    import torch

    from tsugiki.compress.dialogues import read_dialogues
    from tsugiki.compress.hf_model import load_fine_tune, load_model, model_of
    from tsugiki.compress.reconstruct import open_variant
    from tsugiki.compress.tokenizer_check import has_tokenizer, load_tokenizer
    from tsugiki.config import default_cache_dir
    from tsugiki.model.device import choose_device

    variant = open_variant(args.variant, args.base, default_cache_dir())
    path = variant.base.checkpoint.path
    tokenizer = load_tokenizer(args.tuned if has_tokenizer(args.tuned) else path)
    longest = variant.base.architecture.max_position_embeddings
    dialogues = list(read_dialogues(args.data, tokenizer, limit=args.limit, max_tokens=longest))
    progress.stage("loading the models")
    place = getattr(torch, args.dtype), choose_device(args.device)
    models = {
        "tuned": load_fine_tune(args.tuned, path, *place),
        "variant": model_of(variant.config(), variant.tensors(), *place),
    }
    if args.with_base:
        models["base"] = load_model(path, *place)
    return models, dialogues


def render(result: "Evaluation") -> str:
    """The metrics for people."""
    lines = [
        f"{result.examples} examples, {result.answer_tokens} answer tokens; [95 % interval]",
        f"  KL(tuned || variant)  {_shown(result.kl)} nats per answer token",
        f"  top-1 agreement       {_shown(result.top1_agreement)}",
    ]
    lines += [f"  perplexity {n:<10} {_shown(e)}" for n, e in result.perplexity.items()]
    lines += [f"  exact match {n:<9} {_shown(e)}" for n, e in result.accuracy.items()]
    return "\n".join(lines)


def _shown(estimate: "Estimate") -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
