"""RMS norms whose weight may differ from row to row.

Owns: norm weights as the decoder multiplies with them, stacked so that a step of many variants
needs no work per norm and variant. Does not know: layers, segments.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tsugiki.codecs.base import ResidentVariant

Stacks = Mapping[int, Tensor]  # length of the norms -> their weights


class NormWeights:
    """The norms of a base, and of every variant that was in the last step."""

    def __init__(self, stored: Mapping[str, Tensor], plus_one: bool) -> None:
        """`stored`: canonical name -> [dim], activation dtype. With `plus_one` (Gemma) rows are
        multiplied with 1 + weight in float32, else with the weight in the activation dtype."""
        self._plus_one = plus_one
        self._names: dict[int, list[str]] = {}
        for name, weight in stored.items():
            self._names.setdefault(len(weight), []).append(name)
        self._place = {
            name: (dim, i) for dim, names in self._names.items() for i, name in enumerate(names)
        }
        self._base = {
            dim: torch.stack([self._as_multiplied(stored[name]) for name in names])
            for dim, names in self._names.items()
        }
        self._base_alone = {
            name: self._base[dim][number : number + 1]
            for name, (dim, number) in self._place.items()
        }
        self._variants: dict[int, Stacks] = {}

    def stack(self, variants: Sequence[ResidentVariant]) -> Stacks | None:
        """The norms of the base and of these variants: dim -> [norms, 1 + variants, dim].

        None when all of them have the base's norms. Only these variants' weights are kept.
        """
        if not any(variant.vectors for variant in variants):
            self._variants = {}  # they are known by id, which only the last step's variants keep
            return None
        self._variants = {id(v): self._variants.get(id(v)) or self._of(v) for v in variants}
        own = [self._variants[id(v)] for v in variants]
        return {
            dim: torch.stack([base, *(stacks[dim] for stacks in own)], dim=1)
            for dim, base in self._base.items()
        }

    def stacked(self, name: str, stacks: Stacks | None) -> Tensor:
        """[1 + variants, dim]: one norm's weight for the base and the stacked variants; with no
        stacks [1, dim], the base's."""
        if stacks is None:
            return self._base_alone[name]
        dim, number = self._place[name]
        return stacks[dim][number]

    def forget(self) -> None:
        """Keep no variant's weights."""
        self._variants = {}

    def _of(self, variant: ResidentVariant) -> Stacks:
        """One variant's norms, the base's where it changes none: dim -> [norms, dim]."""
        stacks = {dim: base.clone() for dim, base in self._base.items()}
        for name, weight in variant.vectors.items():
            dim, number = self._place[name]
            stacks[dim][number] = self._as_multiplied(weight)
        return stacks

    def _as_multiplied(self, weight: Tensor) -> Tensor:
        return weight.float() + 1 if self._plus_one else weight
