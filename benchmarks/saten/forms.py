"""The forms that are compared, each at a number of honest bits per parameter.

Owns: how a form spends its bits. Does not know: where matrices come from, how forms are judged.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from benchmarks.frontier.approximation import Approximation, Asked, Method
from tsugiki.codecs.base import Packed
from tsugiki.codecs.saten import CODEC
from tsugiki.codecs.saten_fit import DEFAULTS, Wanted, pack, wanted_for
from tsugiki.codecs.saten_train import TensorTrain, parameters_of, within

CORE_BITS, VALUE_BITS = 8, 4
SPLITS = (0.25, 0.5, 0.75)  # of the bits, for the train where both parts are there
TWO_OF_FOUR_BITS = 1.0  # of places; half the entries have values
BISECTIONS = 30
LEAST_STEP = 1e-3  # bits by which an offer that was too much is lowered
ROUNDING = 0.99  # of the bits that are asked for: steps and bytes that are not full come on top


@dataclass(frozen=True, slots=True)
class Form:
    """A way to spend bits."""

    name: str
    modes: str | None  # of the train; None: no train
    pattern: str  # of the sparse part
    value_bits: int = VALUE_BITS


FORMS = (
    Form("low rank", "low-rank", "none"),
    Form("TT matrix", "matrix", "none"),
    Form("TT vector", "vector", "none"),
    Form("sparse", None, "free"),
    Form("low rank + sparse", "low-rank", "free"),
    Form("TT matrix + sparse", "matrix", "free"),
    Form("2:4", None, "2:4"),
    Form("low rank + 2:4", "low-rank", "2:4"),
)


def density_for(bits: float, value_bits: int) -> float:
    """The share of entries whose values and places (at their entropy) take so many bits each."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if middle * value_bits + entropy(middle) <= bits:
            low = middle
        else:
            high = middle
    return low


def entropy(share: float) -> float:
    """Bits of a yes or no."""
    if not 0 < share < 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def packed(
    form: Form, change: Tensor, bits: float, rows_per_step: int = DEFAULTS["rows_per_step"]
) -> Packed | None:
    """The change in this form, in `bits` honest bits per entry; None: it cannot be so small.

    rows_per_step: of the sparse part. A change needs no more than the default; of a whole weight,
    which keeps nearly all entries, each row wants its own.
    """
    settings = _settings(form, change, bits * ROUNDING, rows_per_step)
    found = [best for best in settings if best is not None]
    return min(found, key=lambda packed: error_of(packed, change), default=None)


def error_of(found: Packed, change: Tensor) -> float:
    """|change' - change| / |change|."""
    stored = CODEC.effective(change.new_zeros(change.shape), found).weight
    return float((stored - change).norm() / change.norm())


def _settings(
    form: Form, change: Tensor, bits: float, rows_per_step: int
) -> Iterator[Packed | None]:
    make = partial(_with, form, change, rows_per_step)
    if form.pattern == "2:4":
        left = bits - 0.5 * form.value_bits - TWO_OF_FOUR_BITS
        if left < -bits * (1 / ROUNDING - 1) or (form.modes and left * change.numel() < 1):
            return
        yield make(max(left, 0.0) if form.modes else 0.0, 0.0)
    elif form.modes is None:
        yield make(0.0, bits)
    elif form.pattern == "none":
        yield make(bits, 0.0)
    else:
        for share in SPLITS:
            yield make(share * bits, (1 - share) * bits)


def _with(
    form: Form, change: Tensor, rows_per_step: int, train_bits: float, sparse_bits: float
) -> Packed | None:
    """A part for each that has bits; None where not even one rank fits."""
    options = {"modes": form.modes or "low-rank", "rank": 1, "pattern": form.pattern}
    options |= {"core_bits": CORE_BITS, "value_bits": form.value_bits}
    wanted = wanted_for(change, {**DEFAULTS, **options, "rows_per_step": rows_per_step})
    train = TensorTrain(())
    if train_bits:
        parameters = int(train_bits * change.numel() / CORE_BITS)
        if parameters < parameters_of(wanted.modes, [1] * (len(wanted.modes) - 1)):
            return None
        train = within(change, wanted.modes, parameters)
    if form.pattern != "free":
        return pack(change, train, wanted, None, "")
    return _filled(change, train, wanted, sparse_bits)


def _filled(change: Tensor, train: TensorTrain, wanted: Wanted, bits: float) -> Packed:
    """With as many entries as take at most so many bits: places of a dense part take more than
    their entropy, and steps their own, so what is too large is packed again with fewer."""
    alone = pack(change, train, replace(wanted, pattern="none"), None, "")
    offered = bits
    while kept := round(density_for(offered, wanted.value_bits) * change.numel()):
        found = pack(change, train, replace(wanted, kept=kept), None, "")
        excess = 8.0 * (found.nbytes - alone.nbytes) / change.numel() - bits / ROUNDING
        if excess <= 0:
            return found
        offered -= max(excess, LEAST_STEP)
    return alone


def method(form: Form, asked: Asked) -> Approximation | None:
    """The form as the frontier takes it (benchmarks/frontier)."""
    found = packed(form, asked.delta, asked.size)
    if found is None:
        return None
    delta = CODEC.effective(asked.delta.new_zeros(asked.delta.shape), found).weight
    bits = 8.0 * found.nbytes
    return Approximation(delta, bits, bits)


def methods() -> dict[str, Method]:
    """By name; without 2:4, whose 3 bits per parameter are more than the frontier offers."""
    return {f"saten {form.name}": partial(method, form) for form in FORMS if form.pattern != "2:4"}
