"""Scores of any Hugging Face directory on chat JSONL: base, fine-tune or a decompressed variant.

Owns the three scores of `examples/README.md`:

* `exact`: the share of answers that greedy decoding would reproduce in full, EOS included. It is
  teacher-forced: if the arg-max is right at every position along the gold answer, then greedy
  decoding walks that path, and one forward pass a batch tells. NLL and token accuracy come free,
  and with --reference the KL divergence from a fine-tune, which ranks close variants long after
  accuracy cannot.
* `final`: greedy replies are generated and the number behind `####` is compared (GSM8K's rule);
  in a reply without that mark, the last number counts.
* `style`: greedy replies are generated; the share with at least three distinct pirate markers.

Shares come with 95 % Wilson intervals, which stay sensible at 0 % and 100 %.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from chat_data import Example, answer_logits, common_prefix, encode, load_lines, make_batches
from data_pirate import count_markers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

STYLE_MARKERS = 3
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--data", type=Path, required=True, help="JSONL, see chat_data.py")
    parser.add_argument("--score", choices=("exact", "final", "style"), default="exact")
    parser.add_argument("--reference", type=Path, help="exact: also KL from this directory")
    parser.add_argument("--limit", type=int, default=0, help="first N lines only")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--max-new-tokens", type=int, default=96, help="final and style")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    return parser.parse_args()


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share."""
    z = 1.959964
    share = hits / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (middle - spread) / scale, (middle + spread) / scale


def share(hits: int, total: int) -> dict[str, Any]:
    """A share with its interval, as it goes into the JSON file."""
    low, high = wilson(hits, total)
    return {"hits": hits, "total": total, "share": hits / total, "low": low, "high": high}


def load_model(path: Path, dtype: torch.dtype) -> Any:
    """Load a directory for inference."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def divergence(reference: Tensor, logits: Tensor) -> tuple[float, int]:
    """Summed KL(reference || model) and the number of positions with the same arg-max."""
    log_p = reference.log_softmax(-1)
    kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)
    agree = reference.argmax(-1) == logits.argmax(-1)
    return float(kl.sum()), int(agree.sum())


def score_exact(
    model: Any, examples: Sequence[Example], batch_tokens: int, reference: Any
) -> dict[str, Any]:
    """Teacher-forced exact match, NLL per answer token and, given a reference, KL from it."""
    prefix = common_prefix(examples)
    wrong: set[int] = set()
    tokens = right = agree = 0
    nll = kl = 0.0
    for indices in make_batches(examples, prefix, batch_tokens, None):
        batch = [examples[index] for index in indices]
        result = answer_logits(model, batch, prefix)
        correct = result.logits.argmax(-1) == result.targets
        wrong |= {indices[row] for row in result.owner[~correct].tolist()}
        right += int(correct.sum())
        tokens += len(result.targets)
        nll += float(
            torch.nn.functional.cross_entropy(result.logits, result.targets, reduction="sum")
        )
        if reference is not None:
            expected = answer_logits(reference, batch, prefix).logits
            batch_kl, batch_agree = divergence(expected, result.logits)
            kl += batch_kl
            agree += batch_agree
    scores = {
        **share(len(examples) - len(wrong), len(examples)),
        "wrong": sorted(wrong),
        "nll_per_token": nll / tokens,
        "token_accuracy": right / tokens,
        "answer_tokens": tokens,
    }
    if reference is not None:
        scores |= {"kl_per_token": kl / tokens, "top1_agreement": agree / tokens}
    return scores


def greedy_replies(
    model: Any, tokenizer: Any, examples: Sequence[Example], max_new: int, batch_size: int = 16
) -> list[str]:
    """Generate greedily, prompts of similar length together to keep the padding short."""
    replies = [""] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: examples[index].start)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        prompts = [list(examples[i].ids[: examples[i].start]) for i in indices]
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        pad = tokenizer.eos_token_id
        output = model.generate(
            torch.tensor([[pad] * n + p for n, p in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in padding]),
            max_new_tokens=max_new,
            do_sample=False,
            pad_token_id=pad,
        )
        for index, row in zip(indices, output[:, width:].tolist(), strict=True):
            replies[index] = tokenizer.decode(row, skip_special_tokens=True)
    return replies


def final_number(text: str) -> str:
    """The number behind the last `####`, or else the last number of all (for untuned models)."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.rsplit("####", 1)[-1].replace(",", ""))
    if not numbers:
        return ""
    return str(numbers[0] if "####" in text else numbers[-1])


def score_replies(
    score: str, replies: Sequence[str], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Judge generated replies by their final number or by their style."""
    if score == "final":
        gold = [final_number(line["answer"]) for line in lines]
        good = [final_number(r) == g != "" for r, g in zip(replies, gold, strict=True)]
    else:
        good = [count_markers(reply) >= STYLE_MARKERS for reply in replies]
    samples = [
        {"prompt": line["prompt"], "reply": reply, "good": ok}
        for line, reply, ok in zip(lines, replies, good, strict=True)
    ]
    wrong = [index for index, ok in enumerate(good) if not ok]
    return {**share(sum(good), len(good)), "wrong": wrong, "samples": samples}


def report_line(result: dict[str, Any]) -> str:
    """One readable line of a result."""
    text = (
        f"{result['model']} {result['data']} {result['score']}: {result['share']:.2%} "
        f"[{result['low']:.2%}, {result['high']:.2%}] ({result['hits']}/{result['total']})"
    )
    for key in ("nll_per_token", "token_accuracy", "kl_per_token", "top1_agreement"):
        if key in result:
            text += f", {key} {result[key]:.4f}"
    return f"{text}, {result['seconds']:.0f} s"


@torch.inference_mode()
def main() -> None:
    """Score one directory on one file."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    dtype = DTYPES[arguments.dtype]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    lines = load_lines(arguments.data, arguments.limit)
    examples = encode(lines, tokenizer)
    model = load_model(arguments.model, dtype)
    if arguments.score == "exact":
        reference = load_model(arguments.reference, dtype) if arguments.reference else None
        scores = score_exact(model, examples, arguments.batch_tokens, reference)
    else:
        replies = greedy_replies(model, tokenizer, examples, arguments.max_new_tokens)
        scores = score_replies(arguments.score, replies, lines)
    result = {
        "model": str(arguments.model),
        "data": arguments.data.name,
        "score": arguments.score,
        "dtype": arguments.dtype,
        **scores,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(report_line(result), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
