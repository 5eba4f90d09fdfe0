"""A fine-tune's predictions on dialogues, kept, so that many candidates are compared with them.

Owns: how much is kept, and the comparison. Does not know: the metrics (evaluate.py), codecs, which
candidate comes next.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import Evaluation, batch_sums, batches, log_probabilities, summary
from tsugiki.compress.progress import Progress

MAX_ANSWER_TOKENS = 2048  # each keeps float32 [vocab]: 0.4 GB in all at 49,152 tokens


@dataclass(frozen=True, slots=True)
class Reference:
    """Log probabilities of the fine-tune at every answer token."""

    batches: tuple[tuple[Dialogue, ...], ...]
    log_probabilities: tuple[Tensor, ...]  # of each batch, float32 [answer tokens, vocab]

    @classmethod
    def of(
        cls,
        model: Any,
        dialogues: Iterable[Dialogue],
        progress: Progress,
        tokens: int = MAX_ANSWER_TOKENS,
    ) -> "Reference":
        """Run the uncompressed fine-tune once, on answers of so many tokens; it can be dropped
        afterwards."""
        grouped = tuple(tuple(batch) for batch in batches(within(dialogues, tokens)))
        counted = progress.track(grouped, "running the fine-tune")
        return cls(grouped, tuple(log_probabilities(model, batch) for batch in counted))

    @property
    def examples(self) -> int:
        """Dialogues that are compared."""
        return sum(map(len, self.batches))

    def compare(self, model: Any) -> Evaluation:
        """How close a transformers model ("variant") is to the fine-tune ("tuned")."""
        rows = [
            row
            for batch, tuned in zip(self.batches, self.log_probabilities, strict=True)
            for row in batch_sums(
                batch, {"tuned": tuned, "variant": log_probabilities(model, batch)}
            )
        ]
        return summary(rows, ("tuned", "variant"))


def within(dialogues: Iterable[Dialogue], tokens: int = MAX_ANSWER_TOKENS) -> Sequence[Dialogue]:
    """The first dialogues whose answers hold at most `tokens`; one at least."""

    def kept() -> Iterator[Dialogue]:
        total = 0
        for dialogue in dialogues:
            total += dialogue.answer_length
            if total > tokens and total > dialogue.answer_length:
                return
            yield dialogue

    return tuple(kept())
