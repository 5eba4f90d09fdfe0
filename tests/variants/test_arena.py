"""Extents: what is freed is the operating system's again, and nothing else is."""

import gc
import mmap
from pathlib import Path

import torch

from tests.variants.tiny_variant import write_variant
from tsugiki.variants.arena import Arena, page_rounded
from tsugiki.variants.loader import read_packed

MIB = 2**20


def mapped_bytes() -> int:
    """Of this process, as the operating system counts them."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def test_an_extent_is_aligned_zeroed_and_accounted_in_pages() -> None:
    arena = Arena()
    extent = arena.allocate(5000)
    assert extent.dtype == torch.uint8
    assert extent.shape == (5000,)
    assert extent.data_ptr() % mmap.PAGESIZE == 0
    assert not extent.any()
    assert (len(arena), arena.nbytes) == (1, page_rounded(5000)) == (1, 2 * mmap.PAGESIZE)


def test_even_nothing_has_an_extent() -> None:
    assert Arena().allocate(0).shape == (0,)


def test_an_extent_lives_as_long_as_any_view_of_it() -> None:
    arena = Arena()
    extent = arena.allocate(MIB)
    view = extent[4096:8192].view(torch.float32)[::2]
    del extent
    view[:] = 3.0
    assert arena.nbytes == MIB
    assert float(view.sum()) == 3.0 * len(view)
    del view
    assert (len(arena), arena.nbytes) == (0, 0)


def test_bytes_freed_are_unmapped_in_whatever_order() -> None:
    arena = Arena()
    gc.collect()
    before = mapped_bytes()
    extents = [arena.allocate(MIB) for _ in range(64)]
    assert mapped_bytes() >= before + 64 * MIB
    for extent in extents:
        extent[::4096] = 1  # every page, by one thread: another one would map memory of its own
    del extent, extents[::2]
    assert arena.nbytes == 32 * MIB
    assert mapped_bytes() <= before + 33 * MIB
    extents.clear()
    assert mapped_bytes() <= before + MIB


def test_all_tensors_of_a_file_lie_in_one_extent_that_goes_with_them(tmp_path: Path) -> None:
    arena = Arena()
    digest = write_variant(tmp_path / "a.safetensors")
    packed, timings = read_packed(tmp_path / "a.safetensors", digest, arena.allocate)
    assert len(arena) == 1
    assert packed.nbytes > arena.nbytes, "the parsed header counts too"
    assert timings.read > 0
    assert timings.verify > 0
    kept = next(iter(packed.content.modules.values())).tensors
    del packed
    assert len(arena) == 1
    del kept
    assert len(arena) == 0
