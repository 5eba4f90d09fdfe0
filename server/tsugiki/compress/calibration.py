"""What the inputs of a fine-tune's linears look like on a little text: E[x] and E[x^2] per channel.

Owns: running the fine-tune on calibration dialogues and streaming the sums. Does not know: codecs,
the variant file, what the statistics are used for.

Two choices follow measurements (fine-tunes of a 135M model, low-bit deltas): the first position is
an attention sink with inputs far outside the rest and is left out; answer positions together weigh
as much as prompt positions together, because answers are what is served.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs.base import ModuleStats
from tsugiki.compress.dialogues import Dialogue
from tsugiki.errors import CompressionRefused
from tsugiki.model.device import device_of

MAX_DIALOGUES = 64
SHARES = (0.5, 0.5)  # of the total weight: prompt, answer
SAMPLE_ROWS = 512  # kept inputs of one sampled linear


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics per linear (by weight name), and raw inputs [n, in] of the sampled linears."""

    stats: Mapping[str, ModuleStats]
    samples: Mapping[str, Tensor]


@dataclass(slots=True)
class _Sums:
    """Running sums over tokens of one linear's input, prompt and answer apart. float64."""

    first: Tensor  # [2, in]
    second: Tensor  # [2, in]
    gram: Tensor | None  # float32 [in, in], prompt and answer alike
    count: list[int] = field(default_factory=lambda: [0, 0])

    @classmethod
    def empty(cls, width: int, device: torch.device, *, gram: bool) -> "_Sums":
        first = torch.zeros(2, width, dtype=torch.float64, device=device)
        square = torch.zeros(width, width, device=device) if gram else None
        return cls(first, torch.zeros_like(first), square)

    def add(self, which: int, rows: Tensor) -> None:
        """Add rows [n, in]."""
        self.first[which] += rows.sum(0, dtype=torch.float64)
        self.second[which] += rows.double().square().sum(0)
        self.count[which] += len(rows)
        if self.gram is not None:
            self.gram.addmm_(rows.T, rows)

    def stats(self) -> ModuleStats:
        shares = [w if n else 0.0 for w, n in zip(SHARES, self.count, strict=True)]
        per_token = [
            w / (sum(shares) * n) if n else 0.0 for w, n in zip(shares, self.count, strict=True)
        ]
        mean = per_token[0] * self.first[0] + per_token[1] * self.first[1]
        second = per_token[0] * self.second[0] + per_token[1] * self.second[1]
        tokens = sum(self.count)
        gram = None if self.gram is None else (self.gram / max(1, tokens)).cpu()
        return ModuleStats(mean.float().cpu(), second.float().cpu(), tokens, gram)


class _Collector:
    """Hooks on the linears of a transformers model; `dialogue` says which rows are answers."""

    def __init__(self, weights: Iterable[str], sampled: frozenset[str], *, grams: bool) -> None:
        self.grams = grams
        self.weights = frozenset(weights)
        self.sums: dict[str, _Sums] = {}
        self.samples: dict[str, list[Tensor]] = {name: [] for name in sampled}
        self.dialogue: Dialogue | None = None

    @contextmanager
    def attached(self, model: torch.nn.Module) -> Iterator[None]:
        handles = [
            module.register_forward_pre_hook(self._hook(f"{name}.weight"))
            for name, module in model.named_modules()
            if f"{name}.weight" in self.weights
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def see(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._see(name, inputs[0][0])

        return see

    def _see(self, name: str, rows: Tensor) -> None:
        """rows: [tokens, in] of the present dialogue."""
        if self.dialogue is None:
            return
        rows = rows.detach().float()
        sums = self.sums.setdefault(name, _Sums.empty(rows.shape[1], rows.device, gram=self.grams))
        # Row p computes token p + 1: the rows that write the answer start one before it.
        answer = max(1, self.dialogue.start - 1)
        sums.add(0, rows[1:answer])
        sums.add(1, rows[answer:])
        kept = self.samples.get(name)
        if kept is not None and sum(map(len, kept)) < SAMPLE_ROWS:
            kept.append(rows[1:].cpu().clone())


def calibrate(
    model: Any,
    dialogues: Iterable[Dialogue],
    weights: Iterable[str],
    sampled: frozenset[str] = frozenset(),
    *,
    grams: bool = False,
) -> Calibration:
    """Run a transformers causal language model on the dialogues, one at a time.

    `weights` are names of linear weights ("model.layers.0.self_attn.q_proj.weight"); of those in
    `sampled` some inputs are kept as well. `grams`: E[x x^T] of each too, in^2 floats a linear.

    Raises:
        CompressionRefused: a linear whose inputs were not seen, or were not finite.
    """
    collector = _Collector(weights, sampled, grams=grams)
    with collector.attached(model), torch.inference_mode():
        for dialogue in dialogues:
            collector.dialogue = dialogue
            ids = torch.tensor([dialogue.ids], device=device_of(model))
            model(ids, use_cache=False, logits_to_keep=1)
    stats = {name: sums.stats() for name, sums in collector.sums.items()}
    _check(collector.weights, stats)
    samples = {n: torch.cat(rows)[:SAMPLE_ROWS] for n, rows in collector.samples.items() if rows}
    return Calibration(stats, samples)


def _check(weights: frozenset[str], stats: Mapping[str, ModuleStats]) -> None:
    unseen = sorted(weights - set(stats))
    if unseen:
        raise CompressionRefused(
            f"calibration saw no input of {unseen[0]} ({len(unseen)} in all); "
            "give more or longer text"
        )
    for name, found in stats.items():
        if not bool(torch.isfinite(found.second_moment).all()):
            raise CompressionRefused(f"calibration: the input of {name} is not finite")
