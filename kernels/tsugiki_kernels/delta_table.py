"""What tables of deltas have in common, and one for backends that look into it from Python.

Owns: what a table demands of what it is filled with. Knows nothing of how a kernel reads it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tsugiki_kernels.check import check_own
from tsugiki_kernels.deltas import Delta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Deltas, Shapes, Span, Staged


class OfOneKind(Protocol):
    """A staged linear of some backend."""

    @property
    def kind(self) -> type[Delta]:
        """Of all its parts."""


Linear = TypeVar("Linear", bound=OfOneKind)


@dataclass(frozen=True, slots=True)
class TableShape:
    """What a table is for; see KernelBackend.delta_table."""

    kind: type[Delta]
    linears: Shapes
    rows: int
    capacity: int

    def check(self, deltas: Sequence[Deltas], spans: Sequence[Span]) -> None:
        """What is to be filled in fits.

        Raises:
            BadArgument: naming what does not.
        """
        if len(deltas) != len(spans) or len(deltas) > self.capacity:
            raise BadArgument(
                f"spans: expected one for each of the deltas and at most {self.capacity}, found "
                f"{len(spans)} for {len(deltas)}"
            )
        for found in deltas:
            if found.kind is not self.kind:
                names = f"{self.kind.__name__}, found {found.kind.__name__}"
                raise BadArgument(f"deltas: expected the table's kind, {names}")
        for start, stop in spans:
            if not 0 <= start <= stop <= self.rows:
                raise BadArgument(f"spans: ({start}, {stop}) is not within {self.rows} rows")

    def check_model(self, linears: Shapes) -> None:
        """What was collected for these linears belongs into the table.

        Raises:
            BadArgument: they are another model's.
        """
        if linears is not self.linears and linears != self.linears:
            raise BadArgument("deltas: made for the linears of another model")


class Sized(Protocol):
    """A delta of some backend: a linear of a variant, or one of its parts."""

    @property
    def inputs(self) -> int:
        """Columns."""

    @property
    def width(self) -> int:
        """Outputs of the fused linear up to its end."""


def check_fits(delta: Sized, place: int, shape: tuple[int, int]) -> None:
    """The delta belongs to linear `place` of the model, [out, in].

    Raises:
        BadArgument: it does not fit.
    """
    outputs, inputs = shape
    if delta.inputs != inputs or delta.width > outputs:
        raise BadArgument(
            f"staged: a delta of {delta.inputs} inputs and outputs up to {delta.width} does not "
            f"fit linear {place}, {shape}"
        )


@dataclass(frozen=True, slots=True)
class StagedDeltas:
    """One variant's linears of a kind, as they were staged; None where it has none of that kind."""

    kind: type[Delta]
    staged: tuple[Staged | None, ...]


class StagedTable:
    """See interface.DeltaTable."""

    def __init__(self, shape: TableShape) -> None:
        self._shape = shape
        self._entries: list[tuple[StagedDeltas, Span]] = []

    def fill(self, deltas: Sequence[Deltas], spans: Sequence[Span]) -> None:
        """See interface.DeltaTable."""
        self._shape.check(deltas, spans)
        own = [check_own("deltas", found, StagedDeltas) for found in deltas]
        self._entries = list(zip(own, spans, strict=True))

    def of(self, place: int) -> tuple[list[Staged], list[Span]]:
        """What the variants change in one linear, and the rows of those that change it."""
        found = [
            (staged, span)
            for deltas, span in self._entries
            if (staged := deltas.staged[place]) is not None
        ]
        return [staged for staged, _ in found], [span for _, span in found]


def by_kind(
    staged: Sequence[Staged | None], own: Callable[[Staged], Linear]
) -> Iterator[tuple[type[Delta], list[Linear | None]]]:
    """Each kind that occurs, in order of its name, and the linears of that kind in their places.

    `own` tells a backend's own linears from others'.
    """
    linears = [None if linear is None else own(linear) for linear in staged]
    kinds = [None if linear is None else linear.kind for linear in linears]
    for kind in sorted({kind for kind in kinds if kind is not None}, key=lambda k: k.__name__):
        yield kind, [s if of is kind else None for s, of in zip(linears, kinds, strict=True)]
