"""The buffer of variants, against a plain model, on a device that does everything late."""

import threading
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from tests.kernels.cuda.lazy_device import LazyDevice
from tsugiki_kernels.cuda.arena import Arena
from tsugiki_kernels.cuda.pinned_ring import PinnedRing
from tsugiki_kernels.cuda.region import Region
from tsugiki_kernels.cuda.slot_table import SlotTable
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.extent import ALIGNMENT

ROOM, BOUNCE = 8 * ALIGNMENT, 2 * ALIGNMENT
FIRST = torch.tensor([0])


@dataclass(eq=False)
class Variant:
    """What a loader keeps of a region: a tensor over it, and in its first word an address."""

    region: Region
    content: Tensor  # follows the region
    expected: list[int]
    named: "Variant | None"  # whose address is in the first word


class Loads:
    """An arena, and how variants come into it."""

    def __init__(self, room: int = ROOM) -> None:
        self.device = LazyDevice()
        self.arena = Arena(self.device, PinnedRing(self.device), BOUNCE)
        self.arena.reserve(room)
        self.uploader = Uploader(self.device, self.arena)
        self.seen: list[tuple[list[int], list[int]]] = []  # what steps read, and should have read

    def load(self, units: int, value: int, named: Variant | None = None) -> Variant:
        with self.uploader as uploader:
            content = uploader.buffer(units * ALIGNMENT).fill_(value)
            region = uploader.target(len(content))
            head = content[:8].view(torch.int64)
            head[0] = 0 if named is None else named.region.address
            region.has_records(head.clone(), FIRST)
            uploader.upload(content, region.memory())
            view = region.follow(region.memory()[8 : len(content)])
        return Variant(region, view, [value] * (len(content) - 8), named)

    def step(self, variant: Variant) -> None:
        """Ask for a step that reads a variant where it is now."""
        region = variant.region
        begin = self.device.view(region.address + 8, region.nbytes - 8, None)
        expected = variant.expected
        self.device.steps.ask(lambda: self.seen.append((begin.tolist(), expected)))


class ArenaMachine(RuleBasedStateMachine):
    """Regions keep what they hold, wherever they go and whoever else comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = Loads()
        self.arena = self.loads.arena
        self.living: list[Variant] = []

    @initialize()
    def fill(self) -> None:
        for value in range(ROOM // ALIGNMENT):
            self.load(1, value)

    @rule(units=st.integers(1, 4), value=st.integers(0, 255))
    def load(self, units: int, value: int) -> None:
        named = self.living[-1] if self.living else None
        self.living.append(self.loads.load(units, value, named))

    @rule(which=st.sets(st.integers(0, 9), min_size=1, max_size=5))
    def evict(self, which: set[int]) -> None:
        gone = [variant for i, variant in enumerate(self.living) if i in which]
        self.living = [variant for variant in self.living if variant not in gone]
        for other in self.living:
            other.named = None if other.named in gone else other.named

    @rule(which=st.sets(st.integers(0, 9), min_size=1, max_size=5), value=st.integers(0, 255))
    def put_one_in_place_of_several(self, which: set[int], value: int) -> None:
        """It takes all that is free, wherever that is."""
        self.evict(which)
        self.arena._collect()
        free = self.arena.stats().free_bytes // ALIGNMENT
        if free:
            self.load(free, value)
        self.arrange()

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 9))
    def step(self, which: int) -> None:
        self.loads.step(self.living[which % len(self.living)])

    @rule()
    def arrange(self) -> None:
        self.arena.arrange()
        beside = self.arena.stats().beside_bytes
        sizes = [v.region.nbytes for v in self.living if not self.inside(v)]
        assert beside == sum(sizes)
        assert all(size > self.arena.stats().free_bytes for size in sizes), "one had room"

    @rule()
    def catch_up(self) -> None:
        self.loads.device.steps.run()
        for variant in self.living:
            assert variant.content.tolist() == variant.expected
            if variant.named is not None:
                head = variant.region.memory()[:8].view(torch.int64)
                assert int(head) == variant.named.region.address

    @invariant()
    def nobody_overlaps(self) -> None:
        places = sorted((v.region.address, v.region.nbytes) for v in self.living)
        for (begin, nbytes), (after, _) in pairwise(places):
            assert begin + nbytes <= after

    @invariant()
    def bytes_are_conserved(self) -> None:
        self.arena._collect()
        stats = self.arena.stats()
        inside = sum(v.region.nbytes for v in self.living if self.inside(v))
        assert stats.free_bytes + inside == stats.nbytes == ROOM
        assert stats.largest_free_bytes <= stats.free_bytes

    def inside(self, variant: Variant) -> bool:
        begin = self.arena._buffer.data_ptr()
        return begin <= variant.region.address < begin + ROOM

    def teardown(self) -> None:
        self.catch_up()
        assert all(read == expected for read, expected in self.loads.seen)


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def fragmented() -> tuple[Loads, list[Variant], Variant]:
    """Every other one of eight gone, and one of three units beside."""
    loads = Loads()
    variants = [loads.load(1, value) for value in range(8)]
    kept = variants[1::2]
    variants.clear()
    return loads, kept, loads.load(3, 99)


def test_what_finds_no_gap_lies_beside_until_the_others_are_moved_together() -> None:
    loads, kept, new = fragmented()
    before = loads.arena.stats()
    assert (before.free_bytes, before.largest_free_bytes) == (4 * ALIGNMENT, ALIGNMENT)
    assert before.beside_bytes == 3 * ALIGNMENT
    loads.arena.arrange()
    after = loads.arena.stats()
    assert (after.free_bytes, after.largest_free_bytes) == (ALIGNMENT, ALIGNMENT)
    assert (after.beside_bytes, after.moves) == (0, 5)
    loads.device.steps.run()
    assert all(v.content.tolist() == v.expected for v in (*kept, new))


def test_a_step_in_flight_reads_what_was_there_when_it_was_asked_for() -> None:
    loads, kept, new = fragmented()
    for variant in (*kept, new):
        loads.step(variant)
    loads.arena.arrange()
    for variant in (*kept, new):
        loads.step(variant)
    loads.device.steps.run()
    assert len(loads.seen) == 10
    assert all(read == expected for read, expected in loads.seen)


def test_nothing_moves_while_a_variant_is_written() -> None:
    loads, _, new = fragmented()
    with loads.uploader:
        thread = threading.Thread(target=loads.arena.arrange)
        thread.start()
        thread.join()
        assert loads.arena.stats().moves == 0
    loads.arena.arrange()
    assert loads.arena.stats().moves == 5
    assert new.region.nbytes == 3 * ALIGNMENT


def test_a_region_lives_as_long_as_a_tensor_over_it() -> None:
    loads = Loads(2 * ALIGNMENT)
    variant = loads.load(2, 7)
    content = variant.content[5:9]
    del variant
    loads.arena._collect()
    assert (content.tolist(), loads.arena.stats().free_bytes) == ([7] * 4, 0)
    del content
    loads.arena._collect()
    assert loads.arena.stats().free_bytes == 2 * ALIGNMENT


def test_the_buffer_is_reserved_once() -> None:
    arena = Loads().arena
    with pytest.raises(BadArgument, match="reserved once"):
        arena.reserve(ROOM)


def test_what_the_base_has_before_the_buffer_is_reserved_stays_where_it_is() -> None:
    device = LazyDevice()
    arena = Arena(device, PinnedRing(device))
    region = arena.take(1)
    before = region.address
    arena.reserve(ROOM)
    arena.arrange()
    stats = arena.stats()
    assert (region.address, stats.beside_bytes, stats.free_bytes) == (before, 0, ROOM)
    del region
    arena.take(ROOM)
    assert arena.stats().beside_bytes == 0


def test_a_slot_has_one_extent_of_at_least_a_byte() -> None:
    table = SlotTable(100)
    assert table.take(1, 60)
    assert not table.take(2, 41)
    with pytest.raises(BadArgument, match="slot 1"):
        table.take(1, 1)
    with pytest.raises(BadArgument, match="0 bytes"):
        table.take(2, 0)
    assert (table.free, table.largest_gap) == (40, 40)
