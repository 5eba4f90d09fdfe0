"""Full fine-tuning of a small Hugging Face causal language model on chat JSONL.

Owns: the training loop that produced the three fine-tunes of `examples/README.md`. All linear
layers and norms are trained; without --embeddings the embedding and the (tied) output projection
stay frozen, because a fine-tune is later stored as a compressed delta of its linears, and on a 135M
model the embedding would be a fifth of all parameters for no gain on these tasks. Compute is
bfloat16; the master weights, and what is written out, are float32: a delta taken between two
bfloat16 files would mostly consist of rounding noise.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from chat_data import Example, answer_logits, common_prefix, encode, load_lines, make_batches
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

STATE_FILE = "training_state.pt"


@dataclass
class Trainer:
    """A bfloat16 working copy of the model and the float32 master weights that own the truth."""

    model: Any
    live: dict[str, torch.nn.Parameter]
    master: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--data", type=Path, required=True, help="JSONL, see chat_data.py")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=0, help="overrides --epochs")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=10, help="steps of linear warm-up")
    parser.add_argument("--batch-tokens", type=int, default=1280, help="padded tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps; 0 for never")
    parser.add_argument("--embeddings", action="store_true", help="train the embedding as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on from --out's checkpoint")
    return parser.parse_args()


def trainable(model: Any, embeddings: bool) -> dict[str, torch.nn.Parameter]:
    """Name the parameters to train and freeze the rest (embedding and output projection)."""
    chosen = {}
    for name, parameter in model.named_parameters():
        table = "embed_tokens" in name or "lm_head" in name
        parameter.requires_grad_(embeddings or not table)
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


def make_trainer(base: Path, lr: float, embeddings: bool = False, device: str = "cpu") -> Trainer:
    """Load the base in bfloat16 with float32 masters; no weight decay, or D would hold it too."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
    model.train()
    live = trainable(model, embeddings)
    master = {name: parameter.detach().float().clone() for name, parameter in live.items()}
    optimizer = torch.optim.AdamW(
        list(master.values()), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return Trainer(model, live, master, optimizer)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero, as a factor on the peak learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def batch_stream(
    examples: list[Example], prefix: int, batch_tokens: int, seed: int
) -> Iterator[list[Example]]:
    """Yield batches without end; epoch k depends on the seed and k alone, so runs can resume."""
    epoch = 0
    while True:
        rng = random.Random(f"{seed}/{epoch}")
        for batch in make_batches(examples, prefix, batch_tokens, rng):
            yield [examples[index] for index in batch]
        epoch += 1


def train_step(trainer: Trainer, batch: list[Example], prefix: int, lr: float) -> float:
    """One optimiser step; returns the mean loss per answer token."""
    result = answer_logits(trainer.model, batch, prefix)
    loss = torch.nn.functional.cross_entropy(result.logits, result.targets)
    # The optimiser only sees the masters: gradients go up to float32, weights come back down.
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in trainer.live.items():
        assert parameter.grad is not None
        trainer.master[name].grad = parameter.grad.float()
        parameter.grad = None
    torch.nn.utils.clip_grad_norm_(list(trainer.master.values()), 1.0)
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr
    trainer.optimizer.step()
    with torch.no_grad():
        for name, parameter in trainer.live.items():
            parameter.copy_(trainer.master[name])
    trainer.step += 1
    return float(loss.detach())


def save_checkpoint(trainer: Trainer, out: Path) -> None:
    """Write masters and optimiser state, replacing the older checkpoint in one move."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "master": {name: tensor.detach() for name, tensor in trainer.master.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "step": trainer.step,
        "seconds": trainer.seconds,
    }
    torch.save(state, out / f"{STATE_FILE}.new")
    (out / f"{STATE_FILE}.new").replace(out / STATE_FILE)


def load_checkpoint(trainer: Trainer, out: Path) -> None:
    """Restore what `save_checkpoint` wrote, working copy included."""
    state = torch.load(out / STATE_FILE, weights_only=True, map_location="cpu")
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    with torch.no_grad():
        for name, tensor in state["master"].items():
            trainer.master[name].copy_(tensor)
            trainer.live[name].copy_(tensor)


def relative_delta(trainer: Trainer, base: Path) -> float:
    """|D| / |W| over all trained matrices: how far the fine-tune moved from its base."""
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    moved = total = 0.0
    for name, parameter in before.named_parameters():
        if name in trainer.master and parameter.dim() == 2:
            weight = parameter.detach()
            moved += float((trainer.master[name].cpu() - weight).square().sum(dtype=torch.float64))
            total += float(weight.square().sum(dtype=torch.float64))
    return math.sqrt(moved / total)


def write_model(trainer: Trainer, tokenizer: Any, out: Path) -> None:
    """Write the masters as an ordinary float32 Hugging Face directory."""
    model = trainer.model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trainer.master:
                parameter.copy_(trainer.master[name])
    model.config.dtype = torch.float32
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def run(trainer: Trainer, arguments: argparse.Namespace, examples: list[Example]) -> list[float]:
    """The loop: batches, learning rate, progress lines, checkpoints; returns the losses."""
    prefix = common_prefix(examples)
    stream = batch_stream(examples, prefix, arguments.batch_tokens, arguments.seed)
    for _ in range(trainer.step):
        next(stream)
    losses: list[float] = []
    started = time.perf_counter() - trainer.seconds
    while trainer.step < arguments.steps:
        lr = arguments.lr * schedule(trainer.step, arguments.steps, arguments.warmup)
        batch = next(stream)
        losses.append(train_step(trainer, batch, prefix, lr))
        trainer.seconds = time.perf_counter() - started
        if trainer.step % 5 == 0 or trainer.step == arguments.steps:
            recent = sum(losses[-5:]) / len(losses[-5:])
            print(
                f"step {trainer.step}/{arguments.steps} loss {recent:.4f} lr {lr:.2e} "
                f"rows {len(batch)} {trainer.seconds:.0f} s",
                flush=True,
            )
        if arguments.checkpoint_every and trainer.step % arguments.checkpoint_every == 0:
            save_checkpoint(trainer, arguments.out)
    return losses


def main() -> None:
    """Train, then write the model beside a record of how it came about."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    examples = encode(load_lines(arguments.data), tokenizer)
    prefix = common_prefix(examples)
    per_epoch = len(
        make_batches(examples, prefix, arguments.batch_tokens, random.Random(f"{arguments.seed}/0"))
    )
    arguments.steps = arguments.steps or round(arguments.epochs * per_epoch)
    print(f"{len(examples)} examples, prefix {prefix}, {per_epoch} steps an epoch", flush=True)
    trainer = make_trainer(arguments.base, arguments.lr, arguments.embeddings, arguments.device)
    if arguments.resume and (arguments.out / STATE_FILE).exists():
        load_checkpoint(trainer, arguments.out)
    losses = run(trainer, arguments, examples)
    record = {
        **{key: str(v) if isinstance(v, Path) else v for key, v in vars(arguments).items()},
        "examples": len(examples),
        "steps_per_epoch": per_epoch,
        "seconds": round(trainer.seconds, 1),
        "relative_delta": relative_delta(trainer, arguments.base),
        "losses": [round(loss, 4) for loss in losses],
    }
    write_model(trainer, tokenizer, arguments.out)
    (arguments.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / STATE_FILE).unlink(missing_ok=True)
    print(f"wrote {arguments.out}, |D|/|W| {record['relative_delta']:.5f}", flush=True)


if __name__ == "__main__":
    main()
