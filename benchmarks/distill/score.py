"""How good a student is on a test set: its own answers, and its distance from its teacher.

Owns: the score. Does not know: how the student came about.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import Sums, batch_sums, summary
from tsugiki.distill.batches import batched, shared_beginning
from tsugiki.model.device import device_of

BATCH_TOKENS = {"cpu": 4000, "cuda": 8000}
KL_LINES = {"cpu": 512, "cuda": None}  # None: all; the teacher doubles the work


@torch.inference_mode()
def score(model: Any, teacher: Any, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    """Exact match and perplexity on all dialogues, KL from the teacher on some of them."""
    shared, device = shared_beginning(dialogues), device_of(model).type
    alone = _rows(dialogues, {"tuned": model, "variant": model}, shared)
    beside = _rows(dialogues[: KL_LINES[device]], {"tuned": teacher, "variant": model}, shared)
    whole, kl = (summary(rows, ("tuned", "variant")) for rows in (alone, beside))
    return {
        "examples": whole.examples,
        "accuracy": asdict(whole.accuracy["variant"]),
        "perplexity": asdict(whole.perplexity["variant"]),
        "kl": asdict(kl.kl),
        "kl_examples": kl.examples,
        "top1_agreement": asdict(kl.top1_agreement),
    }


def _rows(dialogues: Sequence[Dialogue], models: dict[str, Any], shared: int) -> list[Sums]:
    rows: list[Sums] = []
    limit = BATCH_TOKENS[device_of(models["variant"]).type]
    for batch in batched(dialogues, limit, shared):
        known = {id(m): batch.known_logits(m).log_softmax(-1) for m in models.values()}
        rows += batch_sums(batch.dialogues, {name: known[id(m)] for name, m in models.items()})
    return rows
