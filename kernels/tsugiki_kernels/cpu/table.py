"""Tables of deltas as the C++ kernels read them: for each variant of a step one address per linear.

Owns: that memory. Filling it for a step copies one short run of addresses for each variant; what is
recorded points at it and stays valid. Knows nothing of what lies at the addresses.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tsugiki_kernels.check import check_own
from tsugiki_kernels.cpu.staging import CpuStaged
from tsugiki_kernels.delta_table import TableShape, check_fits
from tsugiki_kernels.deltas import Delta
from tsugiki_kernels.interface import Deltas, Shapes, Span

NO_PARTS = ctypes.c_int64(0)  # a struct {int64 count; ...} of a linear that is not changed
ADDRESS_BYTES = ctypes.sizeof(ctypes.c_void_p)


@dataclass(frozen=True, slots=True, eq=False)
class CpuDeltas:
    """One variant's linears of a kind."""

    kind: type[Delta]
    linears: Shapes
    addresses: "array[int]"  # one per linear, and one of no parts: kernels look at what comes next
    kept: tuple[CpuStaged, ...]


class CpuTable:
    """See interface.DeltaTable."""

    def __init__(self, shape: TableShape) -> None:
        self.shape = shape
        self._addresses = array("Q", bytes(ADDRESS_BYTES * shape.capacity * self.stride))
        self._spans = array("q", bytes(2 * ADDRESS_BYTES * shape.capacity))
        self._count = ctypes.c_int64(0)
        self._kept: tuple[CpuDeltas, ...] = ()

    @property
    def stride(self) -> int:
        """Addresses from one variant's of a linear to the next variant's."""
        return len(self.shape.linears) + 1

    @property
    def spans(self) -> int:
        """Address of the spans."""
        return self._spans.buffer_info()[0]

    @property
    def count(self) -> int:
        """Address of their number."""
        return ctypes.addressof(self._count)

    def linears(self, place: int) -> int:
        """Address of the first variant's address of a linear."""
        return self._addresses.buffer_info()[0] + place * ADDRESS_BYTES

    def fill(self, deltas: Sequence[Deltas], spans: Sequence[Span]) -> None:
        """See interface.DeltaTable."""
        self.shape.check(deltas, spans)
        kept = tuple(map(self._own, deltas))
        for place, variant in enumerate(kept):
            begin = place * self.stride
            self._addresses[begin : begin + self.stride] = variant.addresses
        self._spans[: 2 * len(spans)] = array("q", chain.from_iterable(spans))
        self._count.value = len(spans)
        self._kept = kept

    def _own(self, deltas: Deltas) -> CpuDeltas:
        own = check_own("deltas", deltas, CpuDeltas)
        self.shape.check_model(own.linears)
        return own


def collect(kind: type[Delta], shapes: Shapes, staged: Sequence[CpuStaged | None]) -> CpuDeltas:
    """One variant's linears of a kind, None where it has none, one for each of the shapes.

    Raises:
        BadArgument: a delta that does not fit its linear.
    """
    for place, (shape, linear) in enumerate(zip(shapes, staged, strict=True)):
        if linear is not None:
            check_fits(linear, place, shape)
    nothing = ctypes.addressof(NO_PARTS)
    addresses = array("Q", [nothing if s is None else s.address for s in (*staged, None)])
    return CpuDeltas(kind, shapes, addresses, tuple(s for s in staged if s is not None))
