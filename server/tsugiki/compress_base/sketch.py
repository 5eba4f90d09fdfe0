"""One linear as index map and codebooks: k-means by sensitivity, a sweep with error feedback, and
rounds in which codes and codebooks are fitted to each other (refine.py).

Source: LeanQuant (arXiv 2407.10032), whose format SketchTune trains in; the sweep is GPTQ's. Ours:
several codebooks a row, codebooks rounded to float16 before the sweep, which then makes up for
that rounding too, and the rounds. Does not know: models, calibration data, files.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.codecs.sketch_cells import canonical
from tsugiki.compress_base.kmeans import weighted_kmeans
from tsugiki.compress_base.refine import refined
from tsugiki.compress_base.sensitivity import Sensitivity
from tsugiki.errors import CompressionRefused
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.codebooks import CodebookWeight, looked_up

BLOCK = 128  # columns whose errors are pushed on at once
# LeanQuant's p, how much more a sensitive column draws codebook entries to itself. Theirs is 3 or
# 4; on text that was not calibrated with 2 left the least error, most of all in down_proj.
POWER = 2.0
ROUNDS = 2  # of refinement; four more gained 0.5 % of the error of outputs


@dataclass(frozen=True, slots=True)
class Sketched:
    """A linear, and what became of it."""

    weight: CodebookWeight
    error: float  # squared, of the weight
    norm: float  # squared, of the weight


def sketch_linear(
    weight: Tensor,
    costs: Sensitivity,
    settings: SketchSettings,
    power: float = POWER,
    rounds: int = ROUNDS,
) -> Sketched:
    """Sketch a weight [out, in].

    Raises:
        CompressionRefused: NaN or infinity, a width that groups or whole bytes do not divide.
    """
    rows, columns = weight.shape
    if columns % settings.groups or columns * settings.bits % 8:
        raise CompressionRefused(
            f"a linear of {columns} inputs cannot be sketched: {settings.groups} groups must "
            f"divide them, and rows of {settings.bits}-bit indices must fill whole bytes"
        )
    weight = weight.float().to(costs.gram.device)
    if not bool(torch.isfinite(weight).all()):
        raise CompressionRefused("the weight holds NaN or infinity: repair the checkpoint first")
    alive = weight.masked_fill(costs.dead, 0.0)
    codebooks = _codebooks(alive, costs.weights(power), settings)
    codes = sweep(alive, codebooks, costs)
    codes, codebooks = refined(alive, codes, codebooks, costs.gram, rounds)
    numbers, stored = canonical(codes.cpu().view(rows, settings.groups, -1), codebooks.cpu())
    packed = packing.pack(numbers.view(rows, columns).to(torch.uint8), settings.bits)
    found = CodebookWeight(settings.index_of((rows, columns), packed), stored)
    error = (looked_up(found.index, found.codebooks) - weight.cpu()).square().sum()
    return Sketched(found, float(error), float(weight.square().sum()))


def _codebooks(weight: Tensor, costs: Tensor, settings: SketchSettings) -> Tensor:
    """float32 [out, groups, entries] of float16 values, ascending."""
    width = weight.shape[1] // settings.groups
    spans = [slice(g * width, (g + 1) * width) for g in range(settings.groups)]
    found = [weighted_kmeans(weight[:, s], costs[s], 1 << settings.bits) for s in spans]
    return torch.stack(found, dim=1).half().float()


def sweep(weight: Tensor, codebooks: Tensor, costs: Sensitivity) -> Tensor:
    """Codes int64 [out, in], column by column in the order of `costs`: the nearest entry to what is
    left of the weight; what the choice is off by is pushed on to the columns still to come."""
    rows, columns = weight.shape
    width = columns // codebooks.shape[1]
    middles = (codebooks[..., 1:] + codebooks[..., :-1]) / 2
    left = weight[:, costs.order].clone()
    codes = torch.empty(rows, columns, dtype=torch.int64, device=weight.device)
    order = costs.order.tolist()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = weight.new_empty(rows, stop - start)
        for place in range(start, stop):
            column = order[place]
            group = column // width
            value = left[:, place]
            code = (value[:, None] > middles[:, group]).sum(1)
            codes[:, column] = code
            chosen = codebooks[:, group].gather(1, code[:, None])[:, 0]
            error = (value - chosen) / costs.factor[place, place]
            later = slice(place + 1, stop)
            left[:, later] -= error[:, None] * costs.factor[place, later]
            errors[:, place - start] = error
        left[:, stop:] -= errors @ costs.factor[start:stop, stop:]
    return codes
