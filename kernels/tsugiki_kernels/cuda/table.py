"""Tables of deltas in device memory: the work lists of all linears of a recorded step.

Owns: that memory, what each variant brings to it, when it is written. Launches read it at each run,
so a step is captured once for its shape; only what a table holds changes from run to run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki_kernels.check import check_own
from tsugiki_kernels.cuda.kinds import Form
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.pinned_ring import PinnedRing
from tsugiki_kernels.cuda.region import Region
from tsugiki_kernels.cuda.staging import CudaStaged
from tsugiki_kernels.cuda.work_list import PART_WORDS, SEGMENT_WORDS, WorkList, write_lists
from tsugiki_kernels.delta_table import TableShape, check_fits
from tsugiki_kernels.deltas import Delta
from tsugiki_kernels.device import Device
from tsugiki_kernels.interface import Deltas, Shapes, Span


@dataclass(frozen=True, slots=True, eq=False)
class CudaDeltas:
    """One variant's linears of a kind."""

    kind: type[Delta]
    linears: Shapes
    # int64 [linears, most parts of one, PART_WORDS], zeros where there are fewer; records counted
    # from the beginning of their region
    parts: Tensor
    scratch: int  # floats per row, of the linear that needs the most
    regions: tuple[Region, ...]  # kept alive, with what is staged there
    owners: Tensor  # int64 [linears]: which region
    kept: tuple[CudaStaged, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Addresses of the regions now."""
        return tuple(region.address for region in self.regions)

    def words(self) -> Tensor:
        """`parts` with the records where they are now."""
        words = self.parts.clone()
        words[..., 0] += torch.tensor(self.places)[self.owners][:, None]
        return words


class CudaTable:
    """See interface.DeltaTable. Has memory for the linears that were asked for, and no others."""

    def __init__(self, shape: TableShape, form: Form, device: Device, ring: PinnedRing) -> None:
        self._shape = shape
        self._form = form
        self._device = device
        self._ring = ring
        self._rows: dict[int, int] = {}  # of each linear that was asked for: its list
        self._held: tuple[CudaDeltas, ...] = ()
        self._spans: tuple[Span, ...] = ()
        self._places: list[tuple[int, ...]] = []  # of what it holds, as the lists have them
        self._parts = 1  # most of a variant in one linear
        self._passes = torch.zeros(0, 2, dtype=torch.bool)  # [lists, 2]: which had items so far
        self._lists = torch.empty(0, 0, SEGMENT_WORDS, dtype=torch.int64)  # on the device
        self._scratch = torch.empty(0)
        self._version = 0

    def version(self) -> int:
        """Another one when launches move or are added: what was captured before is not valid.

        Asked before each run: if a variant has moved, the lists are written anew.
        """
        self._refresh()
        return self._version

    def ask(self, place: int) -> None:
        """Have memory for a linear."""
        if place not in self._rows:
            self._rows[place] = len(self._rows)
            self._passes = torch.cat([self._passes, torch.zeros(1, 2, dtype=torch.bool)])
            if self._held:
                self._write()

    def fill(self, deltas: Sequence[Deltas], spans: Sequence[Span]) -> None:
        """See interface.DeltaTable. What it holds already is not copied again."""
        self._shape.check(deltas, spans)
        held, spans = tuple(map(self._own, deltas)), tuple(spans)
        same = len(held) == len(self._held) and all(map(_is, held, self._held))
        if same and spans == self._spans:
            self._refresh()
            return
        self._held, self._spans = held, spans
        self._write()

    def apply(self, launcher: Launcher, x: Tensor, out: Tensor, place: int) -> None:
        """Launch what walks the list of a linear."""
        row = self._rows[place]
        first, second = self._passes[row].tolist()
        if not (first or second):
            return
        outputs, inputs = self._shape.linears[place]
        segments = self._lists[row]
        work = WorkList(segments, (first, second), len(self._scratch), inputs, outputs)
        self._form.apply(launcher, x, out, work, segments, self._scratch)

    def _refresh(self) -> None:
        if self._places != [deltas.places for deltas in self._held]:
            self._write()

    def _write(self) -> None:
        self._places = [deltas.places for deltas in self._held]
        self._make_room()
        if not self._lists.numel():
            return
        content = self._ring.buffer(self._lists.nbytes).view(torch.int64).view(self._lists.shape)
        chosen = torch.tensor(list(self._rows))
        parts = torch.zeros(
            len(self._held), len(chosen), self._parts, PART_WORDS, dtype=torch.int64
        )
        for variant, deltas in zip(parts, self._held, strict=True):
            variant[:, : deltas.parts.shape[1]] = deltas.words()[chosen]
        passes = self._passes | write_lists(content, parts, self._spans)
        self._ring.copy(self._lists, content)
        if not torch.equal(passes, self._passes):
            self._passes = passes
            self._version += 1

    def _make_room(self) -> None:
        self._parts = max([self._parts, *(deltas.parts.shape[1] for deltas in self._held)])
        shape = (len(self._rows), self._shape.capacity * self._parts + 1, SEGMENT_WORDS)
        if self._lists.shape != shape:
            count = torch.Size(shape).numel()
            self._lists = self._device.empty(8 * count).view(torch.int64).view(shape)
            self._version += 1
        floats = self._shape.rows * max((deltas.scratch for deltas in self._held), default=0)
        if len(self._scratch) < floats:
            self._scratch = self._device.empty(4 * floats).view(torch.float32)
            self._version += 1

    def _own(self, deltas: Deltas) -> CudaDeltas:
        own = check_own("deltas", deltas, CudaDeltas)
        self._shape.check_model(own.linears)
        return own


def collect(kind: type[Delta], shapes: Shapes, staged: Sequence[CudaStaged | None]) -> CudaDeltas:
    """One variant's linears of a kind that has kernels, None where it has none, as tables take it.

    Raises:
        BadArgument: a delta that does not fit its linear.
    """
    linears = [() if linear is None else linear.parts for linear in staged]
    words = torch.zeros(len(shapes), max(map(len, linears)), PART_WORDS, dtype=torch.int64)
    for place, (shape, parts) in enumerate(zip(shapes, linears, strict=True)):
        for i, (_, part) in enumerate(parts):
            check_fits(part, place, shape)
            words[place, i] = torch.tensor(part.words)
    scratch = int(words[..., -1].sum(1).max())
    kept = tuple(s for s in staged if s is not None)
    regions = tuple(dict.fromkeys(linear.region for linear in kept))
    owners = [0 if linear is None else regions.index(linear.region) for linear in staged]
    return CudaDeltas(kind, shapes, words, scratch, regions, torch.tensor(owners), kept)


def _is(one: object, other: object) -> bool:
    return one is other
