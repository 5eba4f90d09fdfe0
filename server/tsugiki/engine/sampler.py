"""Chooses the next token of every row of a step, in one kernel call for all of them.

Owns: what the kernels are asked for: temperatures, filters and random numbers as columns, penalised
copies of the rows that want them. The same request with the same seed gets the same tokens alone,
in a batch, drafted and after preemption: the number that decides output position i depends on
(seed, i) alone, and no row's arithmetic looks at others. Does not know variants, text or stop
conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki.engine.logits import changes_logits, process
from tsugiki.engine.logprobs import token_logprobs
from tsugiki.engine.request import Request, TokenLogprobs
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.operands import Draws

GREEDY_BELOW = 1e-5  # temperatures under it would overflow the division


@dataclass(frozen=True, slots=True)
class Wanted:
    """A token to be chosen: which one of which request, from which row of the logits."""

    request: Request
    position: int  # among the request's output tokens
    row: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's outcome. `finite` is False when the model gave no usable logits: no token then."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    finite: bool = True


class Sampler:
    """Holds nothing between steps."""

    def __init__(self, kernels: KernelBackend) -> None:
        self._kernels = kernels

    def sample(self, logits: Tensor, wanted: Sequence[Wanted]) -> list[Sampled]:
        """The tokens wanted of these logits ([rows, vocabulary], an activation dtype).

        Entries of -inf are never chosen. `logits` are not changed.
        """
        token_ids = self._choose(logits, wanted)
        logprobs = self._logprobs(logits, wanted, token_ids)
        return [
            Sampled(token, logprobs.get(i), finite=token >= 0) for i, token in enumerate(token_ids)
        ]

    def _choose(self, logits: Tensor, wanted: Sequence[Wanted]) -> list[int]:
        """A token for each; -1 where the logits are not usable."""
        changed = [i for i, w in enumerate(wanted) if changes_logits(w.request.params)]
        if not changed:
            return self._draw(logits, wanted, [w.row for w in wanted])
        own = [wanted[i] for i in changed]
        copies = logits[[w.row for w in own]].float()
        process(copies, [w.request for w in own])
        tokens = dict(zip(changed, self._draw(copies, own, range(len(own))), strict=True))
        others = [i for i in range(len(wanted)) if i not in tokens]
        rest = [wanted[i] for i in others]
        drawn = self._draw(logits, rest, [w.row for w in rest]) if rest else []
        tokens |= zip(others, drawn, strict=True)
        return [tokens[i] for i in range(len(wanted))]

    def _draw(self, logits: Tensor, wanted: Sequence[Wanted], rows: Sequence[int]) -> list[int]:
        found: list[int] = self._kernels.sample(logits, draws(wanted, rows, logits.device)).tolist()
        return found

    def _logprobs(
        self, logits: Tensor, wanted: Sequence[Wanted], token_ids: Sequence[int]
    ) -> dict[int, TokenLogprobs]:
        asked = {
            i: w.request.params.logprobs
            for i, w in enumerate(wanted)
            if w.request.params.logprobs is not None and token_ids[i] >= 0
        }
        if not asked:
            return {}
        rows, tokens = [wanted[i].row for i in asked], [token_ids[i] for i in asked]
        found = token_logprobs(self._kernels, logits, rows, tokens, list(asked.values()))
        return dict(zip(asked, found, strict=True))


def draws(wanted: Sequence[Wanted], rows: Sequence[int], device: torch.device) -> Draws:
    """How these tokens are chosen, as columns; `rows[i]` is where token i finds its logits."""
    columns = np.array([_setting(w.request) for w in wanted])
    points = np.zeros(len(wanted))
    random = np.flatnonzero(columns[:, 0])
    if len(random):
        chosen = [wanted[i] for i in random.tolist()]
        points[random] = uniforms([w.request.seed for w in chosen], [w.position for w in chosen])
    return Draws(
        rows=_column(rows, np.int64, device),
        temperature=_column(columns[:, 0], np.float32, device),
        top_k=_column(columns[:, 1], np.int64, device),
        top_p=_column(columns[:, 2], np.float32, device),
        min_p=_column(columns[:, 3], np.float32, device),
        points=_column(points, np.float64, device),
    )


def _setting(request: Request) -> tuple[float, float, float, float]:
    p = request.params
    temperature = p.temperature if p.temperature >= GREEDY_BELOW else 0.0
    return temperature, p.top_k, p.top_p, p.min_p


def _column(
    values: Sequence[int] | NDArray[np.float64], dtype: type[np.generic], device: torch.device
) -> Tensor:
    column = torch.from_numpy(np.array(values, dtype=dtype))
    return column if device.type == "cpu" else column.to(device, non_blocking=True)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position), from nothing else.

    SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
    the mixed seed starts a stream whose element `position` is taken. 32 bits, so that a product
    with a float64 total stays below the total.
    """
    keys = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF for seed in seeds], dtype=np.uint64)
    steps = np.array(positions, dtype=np.uint64) + np.uint64(1)
    golden = np.uint64(0x9E37_79B9_7F4A_7C15)
    mixed = _mix(_mix(keys + golden) + steps * golden)
    return (mixed >> np.uint64(32)).astype(np.float64) / 2.0**32


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return z ^ (z >> np.uint64(31))
