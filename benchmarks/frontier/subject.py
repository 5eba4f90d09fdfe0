"""A fine-tune under test: its deltas, inputs, and what it answers; and candidates in its place.

Owns: loading, calibration, the swap of linears in one model, the texts that are compared on.
Does not know: codecs, sizes, files of results.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.frontier.approximation import Approximation
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress.calibration import calibrate
from tsugiki.compress.calibration_file import MAX_TOKENS
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.evaluate import Evaluation
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base, open_full
from tsugiki.compress.progress import Progress
from tsugiki.compress.reference import Reference
from tsugiki.compress.survey import Change, Pair, Pairs, survey
from tsugiki.compress.tokenizer_check import load_tokenizer

CALIBRATION_EXAMPLES = 64


@dataclass(frozen=True, slots=True)
class Texts:
    """What is compared on."""

    gold: int  # examples of the test file
    own: int = 0  # examples that the fine-tune answers itself
    own_tokens: int = 200  # of each such answer


class Subject:
    """One fine-tune in one model, whose linears are overwritten candidate by candidate."""

    def __init__(
        self, base: Path, tuned: Path, data: Path, calibration: Path, texts: Texts
    ) -> None:
        progress = Progress()
        opened = open_base(base)
        self.pairs: Pairs = open_full(opened, tuned).pairs
        found = survey(self.pairs, self.pairs.names())
        self.changes = tuple(c for c in found.changes if c.kind == "linear")
        tokenizer = load_tokenizer(tuned)
        self._model = load_model(tuned)
        read = read_dialogues(calibration, tokenizer, limit=CALIBRATION_EXAMPLES)
        names = [change.name for change in self.changes]
        self.stats: Mapping[str, ModuleStats] = calibrate(self._model, read, names).stats
        asked = read_dialogues(data, tokenizer, limit=texts.gold, max_tokens=MAX_TOKENS)
        gold = list(asked)
        self._gold = Reference.of(self._model, gold, progress)
        own = list(islice(_answered(self._model, gold, texts.own_tokens), texts.own))
        self._own = Reference.of(self._model, own, progress) if own else None

    @property
    def parameters(self) -> int:
        """Of the linears that the fine-tune changes."""
        return sum(change.numel for change in self.changes)

    def deltas(self) -> Iterator[Pair]:
        """Every changed linear, one pair in memory at a time."""
        return (self.pairs.read(change) for change in self.changes)

    @torch.no_grad()
    def put(self, change: Change, base: torch.Tensor, found: Approximation) -> None:
        """Let a candidate take the place of the fine-tune's linear."""
        linear: Any = self._model.get_submodule(change.name.removesuffix(".weight"))
        linear.weight.copy_(base + found.delta)
        own = self.pairs.tuned
        name = f"{change.name.removesuffix('.weight')}.bias"
        bias = own.tensor(name).float() if name in own else None
        total = _sum(bias, found.bias)
        linear.bias = None if total is None else torch.nn.Parameter(total, requires_grad=False)

    def compare(self) -> tuple[Evaluation, Evaluation | None]:
        """The candidate in place against the fine-tune, on gold and on its own texts."""
        own = None if self._own is None else self._own.compare(self._model)
        return self._gold.compare(self._model), own


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return b if a is None else a if b is None else a + b


@torch.inference_mode()
def _answered(model: Any, asked: Sequence[Dialogue], tokens: int) -> Iterator[Dialogue]:
    """The prompts with greedy answers of exactly so many tokens, end tokens or not: what happens
    where errors can add up."""
    for dialogue in asked:
        prompt = torch.tensor([dialogue.ids[: dialogue.start]])
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        yield Dialogue(tuple(ids[0].tolist()), dialogue.start, scored=False)
