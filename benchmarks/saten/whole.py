"""Whole models whose linears are in a form: packed, run, trained in the compressed space.

Owns: packing many matrices, and the model in which cores and values are
trained while everything else stays. Does not know: what the matrices are, how a model is judged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.saten.forms import Form, packed
from benchmarks.sketch import linears
from tsugiki.codecs.base import Packed
from tsugiki.codecs.saten import CODEC
from tsugiki.codecs.saten_retune import SatenChange
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import model_of
from tsugiki.compress.job import OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.distill.trainer import Record
from tsugiki.model.device import device_of
from tsugiki.tune.repair import Repaired, RepairPlan, repair
from tsugiki.tune.student import RetunedLinear, Student


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices of a model in one form, by weight name."""

    packed: Mapping[str, Packed]
    bits: float  # taken for an entry
    relative_error: float

    def dense(self, name: str) -> Tensor:
        """float32: what is stored of one of them."""
        return _stored(self.packed[name])


def in_form(
    form: Form, size: float, matrices: Mapping[str, Tensor], rows_per_step: int, jobs: int
) -> Matrices:
    """Every matrix in this form, in `size` honest bits an entry; `jobs` at a time.

    Raises:
        SystemExit: the form cannot be so small.
    """
    names, weights = list(matrices), list(matrices.values())
    each = len(names)
    with ThreadPoolExecutor(jobs) as pool:  # torch does not hold the interpreter's lock
        settings = ([form] * each, weights, [size] * each, [rows_per_step] * each)
        found = list(pool.map(packed, *settings))
    if None in found:
        raise SystemExit(f"{form.name} has no setting of {size} bits")
    kept = {name: one for name, one in zip(names, found, strict=True) if one is not None}
    error = sum(float((_stored(kept[n]) - w).square().sum()) for n, w in matrices.items())
    norm = sum(float(w.square().sum()) for w in weights)
    bits = 8.0 * sum(one.nbytes for one in kept.values()) / sum(w.numel() for w in weights)
    return Matrices(kept, bits, (error / norm) ** 0.5)


def _stored(one: Packed) -> Tensor:
    return CODEC.effective(torch.zeros(one.shape), one).weight


def weights_of(base: OpenedBase) -> dict[str, Tensor]:
    """The layers' linears, float32, by weight name."""
    return {name: base.checkpoint.tensor(name).float() for name in sorted(linears(base))}


def model_with(
    base: OpenedBase, device: torch.device, linear: Callable[[str, Tensor], Tensor]
) -> Any:
    """A transformers model in float32 whose linears are `linear(name, weight)`."""
    changed = linears(base)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in base.checkpoint.names():
            weight = base.checkpoint.tensor(name).float()
            yield name, linear(name, weight) if name in changed else weight

    return model_of(base.checkpoint.config, tensors(), torch.float32, device)


def trained(
    model: Any,
    teacher: Any,
    matrices: Matrices,
    dialogues: Sequence[Dialogue],
    plan: RepairPlan,
) -> Repaired:
    """Train cores and values of a model that holds these matrices, in place: places and steps stay.
    The loss is `repair`'s."""
    linears = dict(_attached(model, matrices))
    student = Student(model.train(), linears, {})
    found = repair(student, teacher, dialogues, plan, Progress(quiet=True), Record())
    model.eval()
    return found


def _attached(model: Any, matrices: Matrices) -> Iterator[tuple[str, RetunedLinear]]:
    device = device_of(model)
    model.requires_grad_(False)
    places = dict(model.named_modules())
    for name, one in matrices.packed.items():
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        change = SatenChange(one, torch.float32)
        retuned = RetunedLinear(getattr(places[parent], leaf), change).to(device)
        setattr(places[parent], leaf, retuned)
        yield name, retuned
