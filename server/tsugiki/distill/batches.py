"""Which dialogues are trained on when: a seed and a step say it all, so that runs can be resumed.

Owns: dialogues held out, batches and their order, the beginning that all dialogues share.
Does not know: losses, what is trained.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import answer_logits, logits_at_answers
from tsugiki.errors import InvalidRequest

LEAST_DIALOGUES = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Dialogues that go through a model together, their common beginning once for all."""

    dialogues: tuple[Dialogue, ...]
    shared: int = 0  # tokens

    @property
    def labels(self) -> Tensor:
        """The answer tokens, one dialogue after the other: int64 [n]."""
        return torch.tensor([token for d in self.dialogues for token in d.ids[d.start :]])

    @property
    def answer_tokens(self) -> int:
        """How many labels there are."""
        return sum(dialogue.answer_length for dialogue in self.dialogues)

    @property
    def tokens(self) -> int:
        """What goes through a model, padding included."""
        return self.shared + _padded(self.dialogues, self.shared)

    def logits(self, model: Any) -> Tensor:
        """Those of a transformers model that predict the labels: float32 [n, vocab]."""
        ids = [d.ids for d in self.dialogues]
        return logits_at_answers(model, ids, [d.start for d in self.dialogues], self.shared)

    def known_logits(self, model: Any) -> Tensor:
        """The same, without gradients."""
        ids = [d.ids for d in self.dialogues]
        return answer_logits(model, ids, [d.start for d in self.dialogues], self.shared)


def dialogues_digest(dialogues: Sequence[Dialogue]) -> str:
    """The identity of what a run is trained on: 64 hex digits."""
    return hashlib.sha256(json.dumps([[d.ids, d.start] for d in dialogues]).encode()).hexdigest()


def shared_beginning(dialogues: Sequence[Dialogue]) -> int:
    """Tokens that all prompts begin with, less than any prompt has: the last token of a prompt
    predicts, and so belongs to its own dialogue."""
    columns = zip(*(dialogue.ids[: dialogue.start - 1] for dialogue in dialogues), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def split(
    dialogues: Sequence[Dialogue], held_out: int, seed: int
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Dialogues to train on, and `held_out` others, or a quarter of all where that is fewer.

    Raises:
        InvalidRequest: too few dialogues to hold some out.
    """
    if len(dialogues) < LEAST_DIALOGUES:
        raise InvalidRequest(
            f"at least {LEAST_DIALOGUES} dialogues are needed, {len(dialogues)} are given"
        )
    shuffled = random.Random(f"{seed}/split").sample(dialogues, len(dialogues))
    kept = min(held_out, len(dialogues) // 4)
    return shuffled[kept:], shuffled[:kept]


def batched(dialogues: Iterable[Dialogue], limit: int, shared: int = 0) -> Iterator[Batch]:
    """Dialogues of similar length together; behind what is shared, a padded batch holds at most
    `limit` tokens, or one dialogue."""
    batch: list[Dialogue] = []
    for dialogue in sorted(dialogues, key=lambda d: len(d.ids)):
        if batch and _padded([*batch, dialogue], shared) > limit:
            yield Batch(tuple(batch), shared)
            batch = []
        batch.append(dialogue)
    if batch:
        yield Batch(tuple(batch), shared)


def stream(
    dialogues: Sequence[Dialogue], limit: int, seed: int, shared: int = 0
) -> Iterator[Batch]:
    """Batches without end; epoch k depends on the seed and k alone."""
    epoch = 0
    while True:
        rng = random.Random(f"{seed}/{epoch}")
        # equal lengths fall into different batches in every epoch
        shuffled = rng.sample(dialogues, len(dialogues))
        found = list(batched(shuffled, limit, shared))
        rng.shuffle(found)
        yield from found
        epoch += 1


def from_step(batches: Iterator[Batch], step: int, passes: int) -> Iterator[list[Batch]]:
    """The passes of each step, from one that is counted from 0 on."""
    rest = islice(batches, step * passes, None)
    while True:
        yield list(islice(rest, passes))


def _padded(dialogues: Sequence[Dialogue], shared: int) -> int:
    """The longest is the last: dialogues are sorted."""
    return len(dialogues) * (len(dialogues[-1].ids) - shared)
