"""LLM-Neo's objective: (1 - alpha) cross-entropy + alpha divergence from a teacher.

Source: LLM-Neo (arXiv 2411.06839), which trains a LoRA branch with it. Its reference code masks
logits[t] by labels[t], so that the first answer token is never distilled and one position behind
the answer is; here both losses are taken where the next token is an answer token.
Owns: the objective. Does not know: what of the student is trained, where the teacher's answers
come from.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F

from tsugiki.distill.batches import Batch
from tsugiki.distill.divergence import Direction, divergence
from tsugiki.distill.teacher import Teacher
from tsugiki.distill.trainer import Losses


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the two losses are mixed."""

    alpha: float = 0.5  # weight of the divergence; 0: supervised alone, 1: distillation alone
    direction: Direction = "forward"
    temperature: float = 1.0
    width: int | None = None  # tokens that teacher and student both have; None: all


@dataclass(frozen=True, slots=True)
class NeoObjective:
    """Of a transformers model; in float32 whatever the model computes in."""

    student: Any
    teacher: Teacher | None  # None where alpha is 0 and no divergence is asked for
    mixture: Mixture

    def __call__(self, batch: Batch) -> Losses:
        """See `Objective`. Parts: "ce", and "kl" where there is a teacher."""
        logits = batch.logits(self.student)
        labels = batch.labels.to(logits.device)
        alpha = self.mixture.alpha
        ce = F.cross_entropy(logits, labels, reduction="sum")
        parts = {"ce": float(ce.detach())}
        total = (1 - alpha) * ce
        if self.teacher is not None:
            target = self.teacher.target(batch).to(logits.device)
            shown = logits[:, : self.mixture.width]
            kl = divergence(shown, target, self.mixture.direction, self.mixture.temperature).sum()
            parts["kl"] = float(kl.detach())
            total = total + alpha * kl
        return Losses(total, parts, len(labels))
