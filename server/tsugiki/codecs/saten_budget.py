"""Ranks and densities shared out between matrices under a number of bytes.

Owns: what each setting of a matrix would cost and leave, found from one decomposition, and the
greedy choice among them by error per byte. Does not know: files, models, how a setting is packed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from tsugiki.codecs.base import Options
from tsugiki.codecs.saten_fit import Wanted, wanted_for
from tsugiki.codecs.saten_train import TensorTrain, decompose, largest_ranks, parameters_of

RANKS = (0, 4, 8, 16, 32, 64, 128)
DENSITIES = (0.0005, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6, 0.9)


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting of one matrix."""

    rank: int
    density: float
    nbytes: float  # expected: places at their entropy
    error: float  # |change' - change|^2, rounding of values left out

    @property
    def options(self) -> dict[str, float]:
        """As saten_fit.fit takes it."""
        return {"rank": self.rank, "density": self.density}


def menu(change: Tensor, importance: Tensor | None, options: Options) -> list[Choice]:
    """What there is to choose from for a change float32 [out, in]; fixed options are kept.

    importance: [in], what the square of an entry in this column counts.

    Raises:
        CompressionRefused: naming the option.
    """
    wanted = wanted_for(change, options)
    scale = None if importance is None else importance.sqrt()
    most = max(largest_ranks(wanted.modes))
    ranks = [int(options["rank"])] if "rank" in options else [r for r in RANKS if r <= most]
    whole = decompose(change, wanted.modes, rank=max(ranks)) if max(ranks) else TensorTrain(())
    found = []
    for rank in ranks:
        train = _cut(whole, change, wanted, rank)
        left = change - train.dense() if rank else change
        found += _densities(left if scale is None else left * scale, wanted, train, options)
    return found


def _cut(whole: TensorTrain, change: Tensor, wanted: Wanted, rank: int) -> TensorTrain:
    """The train of a lower rank: of two cores the first ranks of the larger one's."""
    if not rank or len(whole.cores) != 2:
        return decompose(change, wanted.modes, rank=rank) if rank else TensorTrain(())
    first, second = whole.cores
    return TensorTrain((first[..., :rank], second[:rank]))


def _densities(left: Tensor, wanted: Wanted, train: TensorTrain, options: Options) -> list[Choice]:
    entries = left.numel()
    energies = left.flatten().square().sort(descending=True).values.double().cumsum(0)
    total = float(energies[-1])
    ranks = train.ranks
    cores = parameters_of(train.modes, ranks) * wanted.core_bits / 8 if ranks else 0.0
    densities = [float(options["density"])] if "density" in options else DENSITIES
    found = []
    for density in densities:
        kept = round(density * entries)
        error = total - float(energies[kept - 1]) if kept else total
        bits = kept * wanted.value_bits + entries * _entropy(kept / entries)
        if kept and wanted.value_bits != 16:
            bits += 16 * -(-len(left) // wanted.rows_per_step)
        found.append(Choice(max(ranks, default=0), density, cores + bits / 8, error))
    return found


def _entropy(share: float) -> float:
    if not 0 < share < 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def allocate(menus: Mapping[str, Sequence[Choice]], nbytes: float) -> dict[str, Choice]:
    """A setting for every matrix, together at most `nbytes`, by error saved per byte.

    Settings above the lower convex hull of (bytes, error) are never worth their bytes. Along a hull
    the saving per byte falls, so steps are taken in its order over all matrices; when one no longer
    fits, its matrix stays where it is. The cheapest settings are taken whatever they cost.
    """
    hulls = {name: _hull(choices) for name, choices in menus.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    spent = sum(choice.nbytes for choice in chosen.values())
    steps = sorted(
        (
            -(before.error - after.error) / (after.nbytes - before.nbytes),
            name,
            place,
        )
        for name, hull in hulls.items()
        for place, (before, after) in enumerate(pairwise(hull), 1)
    )
    stopped: set[str] = set()
    for _, name, place in steps:
        after = hulls[name][place]
        cost = after.nbytes - chosen[name].nbytes
        if name in stopped or spent + cost > nbytes:
            stopped.add(name)
            continue
        spent += cost
        chosen[name] = after
    return chosen


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of (bytes, error), by bytes."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.error)):
        if found and choice.error >= found[-1].error:
            continue
        while len(found) > 1 and _above(found[-2], found[-1], choice):
            found.pop()
        found.append(choice)
    return found


def _above(left: Choice, middle: Choice, right: Choice) -> bool:
    """Whether the middle one saves less per byte than going straight from left to right."""
    straight = (left.error - right.error) / (right.nbytes - left.nbytes)
    return (left.error - middle.error) <= straight * (middle.nbytes - left.nbytes)
