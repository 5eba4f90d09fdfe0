"""What a teacher expects at the answers of a batch: from a model in memory, or from a file.

Owns: the `Teacher` protocol and the teacher in memory. Does not know: students, losses.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from tsugiki.distill.batches import Batch
from tsugiki.distill.divergence import Target, full_target, top_target


class Teacher(Protocol):
    """Whoever says what is to be expected."""

    def target(self, batch: Batch) -> Target:
        """The distributions that predict the labels of a batch."""


@dataclass(frozen=True, slots=True)
class View:
    """What of a teacher's logits is looked at."""

    width: int  # tokens that teacher and student both have
    top_k: int | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A transformers model, run for every batch."""

    model: Any
    view: View

    def target(self, batch: Batch) -> Target:
        """See `Teacher.target`."""
        logits = batch.known_logits(self.model)[:, : self.view.width]
        if self.view.top_k is None:
            return full_target(logits, self.view.temperature)
        return top_target(logits, self.view.top_k, self.view.temperature)
