"""A fine-tune under test: its deltas, inputs, and what it answers; and candidates in its place.

Owns: loading, calibration, the swap of matrices in one model, the texts that are compared on.
Does not know: codecs, sizes, files of results.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.frontier.approximation import Approximation
from benchmarks.frontier.grams import Grams
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress.calibration import calibrate
from tsugiki.compress.calibration_file import MAX_TOKENS
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.evaluate import Evaluation
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base, open_full
from tsugiki.compress.packer import CODED
from tsugiki.compress.progress import Progress
from tsugiki.compress.reference import MAX_ANSWER_TOKENS, Reference
from tsugiki.compress.sensitivity import noise_costs, shares
from tsugiki.compress.survey import Change, Pair, Pairs, survey
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.model.device import CPU, device_of

CALIBRATION_EXAMPLES = 64
GOLD, OWN, HELD_OUT = "gold", "own", "held out"  # what candidates are compared on


@dataclass(frozen=True, slots=True)
class Texts:
    """What is compared on."""

    gold: int  # examples of the test file
    own: int = 0  # examples that the fine-tune answers itself
    own_tokens: int = 200  # of each such answer
    held_out: int = 0  # examples of the calibration file, taken from those that calibrate
    tokens: int = MAX_ANSWER_TOKENS  # of the answers of each kind, at most


class Subject:
    """One fine-tune in one model, whose matrices are overwritten candidate by candidate."""

    def __init__(
        self,
        base: Path,
        tuned: Path,
        data: Path,
        calibration: Path,
        texts: Texts,
        device: torch.device = CPU,
    ) -> None:
        progress, self.device = Progress(), device
        opened = open_base(base)
        self.pairs: Pairs = open_full(opened, tuned).pairs
        found = survey(self.pairs, self.pairs.names())
        self.changes = tuple(c for c in found.changes if c.kind in CODED)
        tokenizer = load_tokenizer(tuned)
        self._model = load_model(tuned, device=device)
        read = list(read_dialogues(calibration, tokenizer, limit=CALIBRATION_EXAMPLES))
        names = [change.name for change in self.changes if change.kind == "linear"]
        seen = len(read) - texts.held_out
        self.grams = Grams(frozenset(names))
        with self.grams.collected(self._model):
            self.stats: Mapping[str, ModuleStats] = calibrate(self._model, read[:seen], names).stats
        self.shares = self._shares(read[:seen])
        asked = read_dialogues(data, tokenizer, limit=texts.gold, max_tokens=MAX_TOKENS)
        gold = list(asked)
        own = _answered(self._model, gold[: texts.own], texts.own_tokens)
        wanted = {GOLD: gold, OWN: own, HELD_OUT: read[seen:]}
        self._references = {
            kind: Reference.of(self._model, dialogues, progress, texts.tokens)
            for kind, dialogues in wanted.items()
            if dialogues
        }

    def _shares(self, dialogues: Sequence[Dialogue]) -> dict[str, float]:
        """Of the usual bytes, by name; see tsugiki.compress.sensitivity."""
        sizes = {change.name: change.numel for change in self.changes}
        # asked for once for each dialogue: read and moved once
        base = {name: self.pairs.base_tensor(name).to(self.device) for name in sizes}
        costs = noise_costs(self._model, dialogues, sizes, base.__getitem__)
        return shares(costs, sizes)

    @property
    def parameters(self) -> int:
        """Of the matrices that the fine-tune changes."""
        return sum(change.numel for change in self.changes)

    def deltas(self) -> Iterator[Pair]:
        """Every changed matrix, one pair in memory at a time."""
        return (self.pairs.read(change) for change in self.changes)

    @torch.no_grad()
    def put(self, change: Change, base: torch.Tensor, found: Approximation) -> None:
        """Let a candidate take the place of the fine-tune's matrix."""
        self._module(change).weight.copy_(base.to(found.delta.device) + found.delta)
        if change.kind == "linear":
            self.put_bias(change, found.bias)

    def put_bias(self, change: Change, correction: torch.Tensor | None) -> None:
        """The fine-tune's own bias and what a candidate adds to it, float32 [out]."""
        own = self.pairs.tuned
        name = f"{change.name.removesuffix('.weight')}.bias"
        bias = own.tensor(name).float() if name in own else None
        total = _sum(bias, correction)
        module = self._module(change)
        place = module.weight.device
        kept = None if total is None else torch.nn.Parameter(total.to(place), requires_grad=False)
        module.bias = kept

    def _module(self, change: Change) -> Any:
        return self._model.get_submodule(change.name.removesuffix(".weight"))

    def compare(self) -> dict[str, Evaluation]:
        """The candidate in place against the fine-tune: GOLD, and OWN and HELD_OUT where wanted."""
        return {kind: kept.compare(self._model) for kind, kept in self._references.items()}


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return b if a is None else a if b is None else a + b


@torch.inference_mode()
def _answered(model: Any, asked: Sequence[Dialogue], tokens: int) -> list[Dialogue]:
    """The prompts with greedy answers of exactly so many tokens, end tokens or not: what happens
    where errors can add up."""
    if not asked:
        return []
    longest = max(dialogue.start for dialogue in asked)
    ids = torch.zeros(len(asked), longest, dtype=torch.int64)
    real = torch.zeros_like(ids)
    for row, dialogue in enumerate(asked):
        ids[row, longest - dialogue.start :] = torch.tensor(dialogue.ids[: dialogue.start])
        real[row, longest - dialogue.start :] = 1
    device = device_of(model)
    found = model.generate(
        ids.to(device),
        attention_mask=real.to(device),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    answered = zip(asked, found.tolist(), strict=True)
    return [Dialogue(tuple(row[longest - d.start :]), d.start, scored=False) for d, row in answered]
