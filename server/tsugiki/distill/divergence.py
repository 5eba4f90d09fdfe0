"""How far a student's next-token distribution is from its teacher's, position by position.

Owns: forward and reverse KL over the whole vocabulary or over a teacher's top k, at a temperature.
Does not know: models, positions, which loss it is mixed into. Nothing here casts: what comes in
float32 is computed in float32.

Top k: the k tokens that the teacher holds likeliest are k outcomes, everything else is one more.
What is measured is the divergence between these k + 1 outcomes, which never exceeds the divergence
over the vocabulary (data processing), and a student cannot hide mass among the tokens left out.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a teacher expects at n positions.

    `log_probs` [n, vocab], or with `indices` (int64 [n, k]) [n, k + 1]: those of the k tokens, then
    that of all others together.
    """

    log_probs: Tensor
    indices: Tensor | None = None

    def to(self, device: torch.device) -> "Target":
        """The same there."""
        indices = None if self.indices is None else self.indices.to(device)
        return Target(self.log_probs.to(device), indices)


def full_target(logits: Tensor, temperature: float) -> Target:
    """Everything that logits [n, vocab] say."""
    return Target((logits / temperature).log_softmax(-1))


def top_target(logits: Tensor, k: int, temperature: float) -> Target:
    """The k likeliest tokens of logits [n, vocab], and the rest as one outcome."""
    indices = logits.topk(k, dim=-1).indices
    return Target(_with_rest(logits / temperature, indices), indices)


def divergence(
    logits: Tensor, target: Target, direction: Direction, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) ("forward") or KL(student || teacher) ("reverse"), in nats: [n].

    `logits` [n, vocab] are the student's. Both sides are taken at `temperature`, and the result is
    multiplied by its square, so that gradients keep their size (arXiv 1503.02531, section 2).
    """
    scaled = logits / temperature
    if target.indices is None:
        student = scaled.log_softmax(-1)
    else:
        student = _with_rest(scaled, target.indices)
    teacher = target.log_probs
    p, q = (teacher, student) if direction == "forward" else (student, teacher)
    # an outcome of probability 0 adds nothing; its log is -inf, and 0 times that would be NaN
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), torch.zeros_like(p))
    return terms.sum(-1) * temperature**2


def _with_rest(logits: Tensor, indices: Tensor) -> Tensor:
    """Log probabilities of the tokens `indices` [n, k] and of all others together: [n, k + 1]."""
    total = logits.logsumexp(-1, keepdim=True)
    rest = logits.scatter(1, indices, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat((logits.gather(1, indices), rest), dim=1) - total
