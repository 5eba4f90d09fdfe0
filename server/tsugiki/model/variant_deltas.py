"""What variants change in the linears of a step, as recorded operations read it.

Owns: for each variant its deltas in all linears, put together once, with the base's own low-rank
part wherever the variant fills no slot of it; for each recorded step the tables that say which
variant has which rows in a run. Does not know: activations, codecs' formats.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki_kernels.deltas import Delta, LowRankDelta
from tsugiki_kernels.interface import Deltas, KernelBackend, Shapes, Span, Staged

Fused = tuple[tuple[Deltas, ...], Span]  # one variant's deltas of every kind, and its rows


class _Known(NamedTuple):
    variant: ResidentVariant  # kept, for its id is the key
    rebuilt_from: int | None  # tokens of a chunk from which on some linear is rebuilt
    fused: dict[int, tuple[Deltas, ...]]  # by tokens of the chunk; 0: whenever nothing is rebuilt


class VariantDeltas:
    """The deltas of the variants met so far."""

    def __init__(
        self,
        linears: Mapping[str, tuple[int, int]],
        kernels: KernelBackend,
        own: Mapping[str, Staged] | None = None,
    ) -> None:
        """`linears`: shape [out, in] of each fused linear of the base; `own`: its own low-rank part
        of those that have a slot for one."""
        self._places = {name: place for place, name in enumerate(linears)}
        self.shapes: Shapes = tuple(linears.values())
        self.kernels = kernels
        self._known: dict[int, _Known] = {}
        self._own = own or {}
        self.of_base = self._collected(dict(self._own))  # of rows without a variant

    def place(self, name: str) -> int:
        """Of a fused linear in tables."""
        return self._places[name]

    def fused(self, variant: ResidentVariant | None, chunk_tokens: int) -> tuple[Deltas, ...]:
        """What stays compressed for a chunk of so many tokens, one value per kind of delta."""
        if variant is None:
            return self.of_base
        known = self._of(variant)
        key = chunk_tokens if _reaches(chunk_tokens, known.rebuilt_from) else 0
        if key not in known.fused:
            known.fused[key] = self._collect(variant, key)
        return known.fused[key]

    def rebuilds(self, variant: ResidentVariant, chunk_tokens: int) -> bool:
        """Whether such a chunk multiplies with a rebuilt weight in some linear."""
        return _reaches(chunk_tokens, self._of(variant).rebuilt_from)

    def forget(self) -> None:
        """Keep no variant alive."""
        self._known.clear()

    def _of(self, variant: ResidentVariant) -> _Known:
        known = self._known.get(id(variant))
        if known is None:
            limits = [linear.reconstruct_from for linear in variant.linears.values()]
            reached = min((limit for limit in limits if limit is not None), default=None)
            known = self._known[id(variant)] = _Known(variant, reached, {})
        return known

    def _collect(self, variant: ResidentVariant, tokens: int) -> tuple[Deltas, ...]:
        found = {n: s.staged for n, s in variant.linears.items() if not is_rebuilt(s, tokens)}
        slots = {n: s for n, s in found.items() if s.kind is LowRankDelta}
        if not self._own:
            return self._collected(found)
        others = {n: s for n, s in found.items() if n not in slots}
        return self._collected({**self._own, **slots}) + self._collected(others)

    def _collected(self, staged: Mapping[str, Staged]) -> tuple[Deltas, ...]:
        return self.kernels.collect(self.shapes, [staged.get(name) for name in self._places])


def is_rebuilt(linear: StagedLinear, chunk_tokens: int) -> bool:
    """Whether a chunk of so many tokens multiplies with a rebuilt weight here."""
    return _reaches(chunk_tokens, linear.reconstruct_from)


def _reaches(tokens: int, limit: int | None) -> bool:
    return limit is not None and tokens >= limit


class StepTables:
    """Which deltas change which rows of the runs of one recorded step: a table for each kind."""

    def __init__(
        self, kinds: Sequence[type[Delta]], deltas: VariantDeltas, rows: int, capacity: int
    ) -> None:
        make, shapes = deltas.kernels.delta_table, deltas.shapes
        self._tables = {kind: make(kind, shapes, rows, capacity) for kind in kinds}

    def fill(self, fused: Sequence[Fused]) -> None:
        """Before a run; with nothing, no variant is kept alive."""
        for kind, table in self._tables.items():
            found = [(d, span) for deltas, span in fused for d in deltas if d.kind is kind]
            table.fill([deltas for deltas, _ in found], [span for _, span in found])

    def apply(self, x: Tensor, out: Tensor, place: int, kernels: KernelBackend) -> None:
        """Ask for what the tables will hold to be added in one linear: [rows, in], [rows, out]."""
        for table in self._tables.values():
            kernels.apply_table(x, out, table, place)
