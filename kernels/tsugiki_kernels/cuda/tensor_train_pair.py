"""Tensor trains as the CUDA kernels meet them: of two cores, whatever a train has.

Owns: where a train of more cores is cut, and the products of the cores on either side. Two cores
need two launches and one state between them; what is merged takes more memory than its cores, and
such trains are rare (docs/codecs.md: a plain low rank, which has two, is the best of them).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki_kernels.deltas import Stage, TensorTrainDelta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.formulas import train_product


class Pair(NamedTuple):
    """The stages of a train of two cores.

    An input is (p, k, q) of the first stage, an output (p', m', q') of the last. With r ranks

        T[output, input] = sum over t < r of
            last[m', (p r + t) q_len + q] first[(p' r + t) q'_len + q', k].
    """

    first: Stage
    last: Stage

    @property
    def state(self) -> int:
        """Elements that lie between the two."""
        return self.first.outer * self.first.outputs * self.first.inner

    @property
    def ranks(self) -> int:
        """Terms of an element of the matrix."""
        return self.first.outputs // (self.last.outer * self.last.inner)


def pair_of(stages: Sequence[Stage]) -> Pair | None:
    """The two stages; None where there is no train.

    Raises:
        BadArgument: stages that are not those of two cores or more met from one end.
    """
    if not stages:
        return None
    pair = _halves(stages, _cut(stages)) if len(stages) > 1 else None
    if pair is None or not _from_one_end(pair):
        raise BadArgument(
            f"stages: {tuple(stages)} are not two cores or more met from one end, which is all "
            "that the CUDA kernels take: use --kernels reference"
        )
    return pair


def _from_one_end(pair: Pair) -> bool:
    first, last = pair
    one_way = min(first.outer, last.outer) == 1 == min(first.inner, last.inner)
    return one_way and first.outputs % (last.outer * last.inner) == 0


def paired_cores(delta: TensorTrainDelta) -> tuple[Tensor, Tensor]:
    """The cores of `pair_of`, [outputs, inputs] each, of the dtype of the train's.

    Products of cores are rounded to it.
    """
    cut = _cut(delta.stages)
    sizes = [stage.outputs * stage.inputs for stage in delta.stages]
    parts = [sum(sizes[:cut]), sum(sizes[cut:])]
    before, behind = torch.split(delta.cores, parts)
    return (
        _merged_core(delta, delta.stages[:cut], before),
        _merged_core(delta, delta.stages[cut:], behind),
    )


def _cut(stages: Sequence[Stage]) -> int:
    """How many stages come before the cut that leaves the fewest elements in cores."""
    return min(
        range(1, len(stages)),
        key=lambda cut: sum(s.outputs * s.inputs for s in _halves(stages, cut)),
    )


def _halves(stages: Sequence[Stage], cut: int) -> Pair:
    return Pair(_merged(stages[:cut]), _merged(stages[cut:]))


def _merged(stages: Sequence[Stage]) -> Stage:
    """Stages as one: what all of them leave alone stays outside."""
    outer = math.gcd(*(stage.outer for stage in stages))
    inner = math.gcd(*(stage.inner for stage in stages))
    around = outer * inner
    return Stage(outer, _read(stages[0]) // around, _written(stages[-1]) // around, inner)


def _read(stage: Stage) -> int:
    return stage.outer * stage.inputs * stage.inner


def _written(stage: Stage) -> int:
    return stage.outer * stage.outputs * stage.inner


def _merged_core(delta: TensorTrainDelta, stages: Sequence[Stage], cores: Tensor) -> Tensor:
    whole = _merged(stages)
    if len(stages) == 1:
        return cores.view(whole.outputs, whole.inputs)
    own = tuple(
        Stage(s.outer // whole.outer, s.inputs, s.outputs, s.inner // whole.inner) for s in stages
    )
    alone = replace(delta, stages=own, cores=cores)
    return train_product(torch.eye(whole.inputs), alone).T.to(cores.dtype)
