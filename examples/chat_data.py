"""Chat-formatted training and test examples, and the forward pass they share.

Owns: reading JSONL lines into token sequences, cutting them into length-bucketed batches, and
running a model over a batch so that only the answer positions reach the output projection.
`train.py` and `evaluate.py` both use it, so what is scored is exactly what was trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One conversation as token ids; the answer starts at `start` and ends with the EOS token."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class AnswerLogits:
    """Logits at the answer positions of a batch, one row per answer token.

    `owner[i]` is the index, within the batch, of the example that row i belongs to.
    """

    logits: Tensor
    targets: Tensor
    owner: Tensor


def read_messages(line: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Split a JSONL line into the messages before the answer, and the answer."""
    if "messages" in line:
        *before, last = line["messages"]
        if last["role"] != "assistant":
            raise ValueError("the last message of a training line must be the assistant's")
        return before, last["content"]
    return [{"role": "user", "content": line["prompt"]}], line["answer"]


def load_lines(path: Path, limit: int = 0) -> list[dict[str, Any]]:
    """Read a JSONL file, all of it or its first `limit` lines."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]
    return lines[:limit] if limit else lines


def encode(lines: Sequence[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Turn JSONL lines into token sequences with the model's own chat template.

    Prompt and answer are tokenised apart, because that is the boundary a server sees: it
    tokenises the prompt, then the model writes the answer token by token.
    """
    examples = []
    for line in lines:
        before, answer = read_messages(line)
        text = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = (*prompt, *reply, tokenizer.eos_token_id)
        examples.append(Example(ids, len(prompt)))
    return examples


def common_prefix(examples: Sequence[Example]) -> int:
    """Count the leading tokens that every example shares (system prompt, user header).

    At least one prompt token is left out of the prefix, so that every example keeps the
    position that predicts its first answer token.
    """
    length = min(example.start for example in examples) - 1
    first = examples[0].ids
    for example in examples:
        while example.ids[:length] != first[:length]:
            length -= 1
    return length


def make_batches(
    examples: Sequence[Example], prefix: int, batch_tokens: int, rng: random.Random | None
) -> list[list[int]]:
    """Group examples of similar length so that a padded batch holds at most `batch_tokens`.

    With an `rng` the examples are shuffled first and sorted only within pools of some 16
    batches, so batches differ from epoch to epoch; without one the order is by length alone.
    """
    lengths = [len(example.ids) - prefix for example in examples]
    order = list(range(len(examples)))
    pool = len(order)
    if rng is not None:
        rng.shuffle(order)
        pool = max(1, 16 * batch_tokens * len(order) // sum(lengths))
    batches: list[list[int]] = []
    for begin in range(0, len(order), pool):
        batch: list[int] = []
        for index in sorted(order[begin : begin + pool], key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    if rng is not None:
        rng.shuffle(batches)
    return batches


def answer_logits(model: Any, batch: Sequence[Example], prefix: int) -> AnswerLogits:
    """Run a batch and return logits at answer positions only.

    The shared prefix goes through the model once per batch and its keys and values are repeated
    over the rows. That is exact, gradients included, and more than halves the work for short
    queries behind a 30-token system prompt. Right padding needs no mask: under causal
    attention no real token can see the padding that follows it.
    """
    place = model.device
    width = max(len(example.ids) for example in batch)
    rows = [list(e.ids[prefix:]) + [0] * (width - len(e.ids)) for e in batch]
    cache = None
    if prefix:
        head = torch.tensor([batch[0].ids[:prefix]], device=place)
        cache = model.model(input_ids=head, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch))
    hidden = model.model(
        input_ids=torch.tensor(rows, device=place),
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    owner = [row for row, e in enumerate(batch) for _ in range(e.start, len(e.ids))]
    column = [p - 1 - prefix for e in batch for p in range(e.start, len(e.ids))]
    targets = [token for e in batch for token in e.ids[e.start :]]
    rows_index = torch.tensor(owner, device=place)
    picked = hidden[rows_index, torch.tensor(column, device=place)]
    answers = torch.tensor(targets, device=place)
    return AnswerLogits(model.lm_head(picked).float(), answers, rows_index)
