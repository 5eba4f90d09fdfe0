"""The table of kernels says what the compiled kernels are."""

import ctypes
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.cuda_resources.resources import compile_all, find_tool
from tsugiki_kernels.cuda.kernels import KERNELS, start
from tsugiki_kernels.cuda.launcher import Argument, Int32, Int64
from tsugiki_kernels.cuda.sources import sources
from tsugiki_kernels.errors import BadArgument

ARCHITECTURE = "sm_80"  # entries and their parameters are the same on all


class Entry(NamedTuple):
    """A kernel as it was compiled."""

    source: str
    parameters: list[int]  # bytes of each
    threads: int  # of a block: __launch_bounds__


@pytest.fixture(scope="module")
def entries(cubin_cache: Path) -> dict[str, Entry]:
    """Every compiled entry by its name."""
    launcher = pytest.importorskip(
        "tsugiki_kernels.cuda.cupy_launcher", reason="no CuPy: pip install 'tsugiki[cuda]'"
    )
    tool = find_tool("cuobjdump")
    if tool is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump; no entry was checked")
    found: dict[str, Entry] = {}
    for (source, _), cubin in compile_all(launcher.Nvrtc(), cubin_cache, [ARCHITECTURE]).items():
        command = [str(tool), "-elf", str(cubin)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for name, parameters, threads in read_entries(listing):
            assert name not in found, f"{name} is defined twice"
            found[name] = Entry(source, parameters, threads)
    return found


def read_entries(listing: str) -> Iterator[tuple[str, list[int], int]]:
    """Name, bytes of the parameters, threads: of each entry that `cuobjdump -elf` shows."""
    for part in re.split(r"(?m)^\.nv\.info\.", listing)[1:]:
        found = re.findall(r"Ordinal : (0x\w+)\s+Offset\s+: 0x\w+\s+Size\s+: (0x\w+)", part)
        sizes = {int(ordinal, 16): int(size, 16) for ordinal, size in found}
        extents = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+(.*)", part)
        assert extents is not None, f"no launch bounds: {part.split(maxsplit=1)[0]}"
        x, y, z = (int(extent, 16) for extent in extents.group(1).split())
        yield part.split(maxsplit=1)[0], [sizes[i] for i in range(len(sizes))], x * y * z


def test_every_compiled_entry_has_one_row_and_every_row_an_entry(
    entries: dict[str, Entry],
) -> None:
    assert {name: kernel.source for name, kernel in KERNELS.items()} == {
        name: entry.source for name, entry in entries.items()
    }


def test_rows_and_entries_agree_on_parameters_and_threads(entries: dict[str, Entry]) -> None:
    for name, kernel in KERNELS.items():
        sizes = dict.fromkeys(kernel.sizes, 1)
        parameters = list(map(ctypes.sizeof, kernel.parameters))
        (threads,) = kernel.block(**sizes)
        assert (name, parameters, threads) == (
            name,
            entries[name].parameters,
            entries[name].threads,
        )


def test_rows_name_sources_that_exist() -> None:
    assert {kernel.source for kernel in KERNELS.values()} == {path.name for path in sources()}


def test_grids_follow_from_sizes() -> None:
    gate, tiles = KERNELS["tsugiki_gate_bf16"], KERNELS["tsugiki_sparse_tiles_f16"]
    assert gate.sizes == ("rows", "width")
    assert gate.grid(rows=3, width=2048) == (3, 1)
    assert gate.grid(rows=3, width=2049) == (3, 2)
    assert tiles.grid(multiprocessors=108, window=256) == (432,)
    assert tiles.shared_bytes(multiprocessors=108, window=256) == (256 + 32 + 32) * 16
    assert KERNELS["tsugiki_sparse_rebuild_rows_f32"].grid(outputs=5) == (3,)


class Started:
    """A launcher that keeps the last launch."""

    device = torch.device("cpu")
    multiprocessors, capability = 2, (8, 0)

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: object,
        shared_bytes: int = 0,
    ) -> None:
        self.last = (name, grid, block, shared_bytes)


def test_a_kernel_starts_as_its_row_says() -> None:
    launcher, x = Started(), torch.zeros(1)
    args: list[Argument] = [x, Int64(1), x, x, Int32(5)]
    start(launcher, "tsugiki_gather_f32", args, rows=4, width=5)
    assert launcher.last == ("tsugiki_gather_f32", (4, 1), (256,), 0)


def test_what_a_kernel_does_not_take_is_refused_by_its_name() -> None:
    launcher, x = Started(), torch.zeros(1)
    with pytest.raises(BadArgument, match="tsugiki_nothing_f32: no kernel of this name"):
        start(launcher, "tsugiki_nothing_f32", [])
    args: list[Argument] = [x, Int32(1), x, x, Int32(5)]
    with pytest.raises(BadArgument, match=r"gather_f32: takes c_void_p, c_long, .*given .* c_int"):
        start(launcher, "tsugiki_gather_f32", args, rows=1, width=1)
