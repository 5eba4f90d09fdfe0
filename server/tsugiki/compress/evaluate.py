"""How close a variant is to the fine-tune it was made from, on dialogues, teacher-forced.

Owns: the metrics and their 95 % intervals. Does not know: codecs, files, how the models came about.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import answer_logits
from tsugiki.compress.progress import Progress

BATCH_TOKENS = 1024
RESAMPLES = 1000
Floats = NDArray[np.float64]
Sums = dict[str, float]  # over the answer tokens of one dialogue


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics over the answer tokens of all dialogues; accuracies over those with an `answer`."""

    examples: int
    answer_tokens: int
    kl: Estimate  # KL(tuned || variant), nats per answer token
    top1_agreement: Estimate  # share of answer tokens
    perplexity: Mapping[str, Estimate]  # by model
    accuracy: Mapping[str, Estimate]  # exact match of the whole answer, end token included


def evaluate(
    models: Mapping[str, Any], dialogues: Sequence[Dialogue], progress: Progress
) -> Evaluation:
    """Run transformers models over the dialogues. `models` has at least "tuned" and "variant"."""
    counted = progress.track(list(batches(dialogues)), "evaluating")
    rows = [
        row
        for batch in counted
        for row in batch_sums(batch, {n: log_probabilities(m, batch) for n, m in models.items()})
    ]
    return summary(rows, tuple(models))


def summary(rows: Sequence[Sums], names: Sequence[str]) -> Evaluation:
    """What the sums of all dialogues say about the models of these names."""
    sums = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    tokens = sums["tokens"]
    return Evaluation(
        examples=len(rows),
        answer_tokens=int(tokens.sum()),
        kl=_ratio(sums["kl"], tokens),
        top1_agreement=_ratio(sums["agree"], tokens),
        perplexity={name: _ratio(sums[f"nll {name}"], tokens, np.exp) for name in names},
        accuracy={
            name: wilson(int((sums[f"exact {name}"] * sums["scored"]).sum()), int(scored))
            for name in names
            if (scored := sums["scored"].sum())
        },
    )


def batches(dialogues: Iterable[Dialogue], limit: int = BATCH_TOKENS) -> Iterator[list[Dialogue]]:
    """Dialogues of similar length together; a padded batch holds at most `limit` tokens."""
    batch: list[Dialogue] = []
    for dialogue in sorted(dialogues, key=lambda d: len(d.ids)):
        if batch and (len(batch) + 1) * len(dialogue.ids) > limit:
            yield batch
            batch = []
        batch.append(dialogue)
    if batch:
        yield batch


def log_probabilities(model: Any, batch: Sequence[Dialogue]) -> Tensor:
    """What a transformers model expects at all answers of a batch: float32 [tokens, vocab]."""
    logits = answer_logits(model, [d.ids for d in batch], [d.start for d in batch])
    return logits.log_softmax(-1)


def batch_sums(batch: Sequence[Dialogue], logs: Mapping[str, Tensor]) -> Iterator[Sums]:
    """One row of sums for each dialogue. `logs`: `log_probabilities` of each model, by name."""
    at = 0
    for dialogue in batch:
        end = at + dialogue.answer_length
        yield _sums(dialogue, {name: log[at:end] for name, log in logs.items()})
        at = end


def _sums(dialogue: Dialogue, logs: Mapping[str, Tensor]) -> Sums:
    """`logs`: log probabilities [answer tokens, vocab] of each model."""
    tuned, variant = logs["tuned"], logs["variant"]
    answer = torch.tensor(dialogue.ids[dialogue.start :], device=tuned.device)
    top = {name: log.argmax(-1) for name, log in logs.items()}
    row = {
        "tokens": float(len(answer)),
        "scored": float(dialogue.scored),
        "kl": float((tuned.exp() * (tuned - variant)).sum()),
        "agree": float((top["tuned"] == top["variant"]).sum()),
    }
    for name, log in logs.items():
        row[f"nll {name}"] = float(-log.gather(1, answer[:, None]).sum())
        row[f"exact {name}"] = float(torch.equal(top[name], answer))
    return row


def _ratio(
    sums: Floats, counts: Floats, shown: Callable[[Floats], Floats] = lambda value: value
) -> Estimate:
    """sum(sums) / sum(counts) with a percentile bootstrap over examples (fixed seed)."""
    chosen = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    drawn = np.array([sums[pick].sum() / counts[pick].sum() for pick in chosen])
    low, high = np.quantile(shown(drawn), (0.025, 0.975))
    value = shown(np.asarray(sums.sum() / counts.sum()))
    return Estimate(float(value), float(low), float(high))


def wilson(hits: int, count: int, z: float = 1.96) -> Estimate:
    """A share with its 95 % score interval (Wilson 1927)."""
    share = hits / count
    centre = share + z * z / (2 * count)
    spread = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    scale = 1 + z * z / count
    return Estimate(share, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))
