"""RMS norms whose weight may differ from row to row.

Owns: norm weights as the decoder multiplies with them, those of the base and of the variants of the
last steps side by side, so that a row of a step needs nothing but the place of its own. Does not
know: layers, segments.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki.model.workspace import Workspace

FEWEST_PLACES = 16
BASE = 0  # its place; variants without norms of their own share it


class _Stack(NamedTuple):
    """The norms of one length."""

    names: list[str]
    places: Tensor  # [norms, places, dim]


class _Placed(NamedTuple):
    variant: ResidentVariant  # kept, for its id is the key
    place: int


class NormWeights:
    """The norms of a base, and of as many variants as there is room for."""

    def __init__(self, stored: Mapping[str, Tensor], plus_one: bool, space: Workspace) -> None:
        """`stored`: canonical name -> [dim], activation dtype. With `plus_one` (Gemma) rows are
        multiplied with 1 + weight in float32, else with the weight in the activation dtype."""
        self._plus_one = plus_one
        self._space = space
        self._stored = {name: self._as_multiplied(weight) for name, weight in stored.items()}
        self._variants: OrderedDict[int, _Placed] = OrderedDict()
        self._make_room(FEWEST_PLACES)

    def places(self, variants: Sequence[ResidentVariant]) -> dict[int, int] | None:
        """Where the norms of each variant of a step stand, by the id of the variant.

        None when all of them have the base's. May take the places of variants of earlier steps;
        the workspace grows when the step has more variants than there are places.
        """
        own = {id(v): v for v in variants if v.vectors}
        if not own:
            return None
        if len(own) >= self._room:
            self._make_room(2 * len(own))
        for key, variant in own.items():
            if key not in self._variants:
                self._variants[key] = _Placed(variant, self._free_place(own))
                self._write(variant, self._variants[key].place)
            self._variants.move_to_end(key)
        return {id(v): self._variants[id(v)].place if v.vectors else BASE for v in variants}

    def of(self, name: str, *, base_alone: bool) -> Tensor:
        """One norm's weight by place, [places, dim]; or [1, dim], the base's."""
        stack, number = self._stack_of[name]
        places = stack.places[number]
        return places[BASE : BASE + 1] if base_alone else places

    def forget(self) -> None:
        """Keep no variant alive."""
        self._variants.clear()

    def _make_room(self, places: int) -> None:
        """Begin anew with so many places; the variants come back when they are asked for."""
        self._room = places
        self._variants.clear()
        lengths = sorted({len(weight) for weight in self._stored.values()})
        stacks = [self._stack(length) for length in lengths]
        self._stack_of = {n: (stack, i) for stack in stacks for i, n in enumerate(stack.names)}

    def _stack(self, dim: int) -> _Stack:
        names = [name for name, weight in self._stored.items() if len(weight) == dim]
        dtype = self._stored[names[0]].dtype
        places = self._space.take(f"norms of {dim}", (len(names), self._room, dim), dtype)
        stack = _Stack(names, places)
        self._fill(stack, BASE, {})
        return stack

    def _free_place(self, needed: Mapping[int, ResidentVariant]) -> int:
        """A place that no variant has, or that of the one used longest ago which is not needed."""
        if len(self._variants) + 1 < self._room:
            return len(self._variants) + 1
        last = next(key for key in self._variants if key not in needed)
        return self._variants.pop(last).place

    def _write(self, variant: ResidentVariant, place: int) -> None:
        for stack in {id(stack): stack for stack, _ in self._stack_of.values()}.values():
            self._fill(stack, place, variant.vectors)

    def _fill(self, stack: _Stack, place: int, changed: Mapping[str, Tensor]) -> None:
        for number, name in enumerate(stack.names):
            own = changed.get(name)
            weight = self._stored[name] if own is None else self._as_multiplied(own)
            stack.places[number, place] = weight

    def _as_multiplied(self, weight: Tensor) -> Tensor:
        return weight.float() + 1 if self._plus_one else weight
