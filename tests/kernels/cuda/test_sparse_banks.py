"""Shared memory of the sparse kernels: the index functions that the kernels use, lane by lane.

A request is served for as many lanes at once as 128 bytes allow (32 lanes of 4 bytes, 16 of 8, 8 of
16), and without conflict when these meet 32 different banks of 4 bytes.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.executor import Executor
from tsugiki_kernels.cuda.launcher import Int32

PROBES = Path(__file__).parent / "probes"


@pytest.fixture(scope="module")
def probe(shim_cache: Path) -> Executor:
    return Executor(shim_cache, sources=PROBES)


def conflicts(offsets: Tensor, width: int) -> int:
    """Requests of one warp, byte offsets [requests, 32]: the banks met twice or more, over all."""
    groups = offsets.reshape(-1, 128 // width, 1) // 4
    banks = (groups + torch.arange(width // 4)).flatten(1) % 32
    return sum(32 - len(set(row)) for row in banks.tolist())


@pytest.mark.compiler
@pytest.mark.parametrize("place_bytes", [4, 8])
def test_whatever_columns_lanes_gather_they_meet_32_banks(
    probe: Executor, place_bytes: int
) -> None:
    out = torch.zeros(4, 32, dtype=torch.int32)
    for _ in range(50):
        places = torch.randint(0, 129, (32, 4)).to(torch.uint8)
        probe.launch("probe_entries", (1,), (32,), (places, Int32(place_bytes), out))
        lanes = torch.arange(32) * place_bytes
        assert torch.equal(out, (places.int().T * 32 * place_bytes + lanes).int())
        assert conflicts(out, place_bytes) == 0


@pytest.mark.compiler
@pytest.mark.parametrize(("block", "columns", "width"), [(128, 0, 4), (64, 0, 8), (0, 4096, 16)])
def test_staged_columns_are_written_to_32_banks_each_to_its_own_place(
    probe: Executor, block: int, columns: int, width: int
) -> None:
    out = torch.zeros(block * 32 or columns, dtype=torch.int32)
    probe.launch("probe_units", (1,), (32,), (Int32(block), Int32(columns), out))
    assert len(set(out.tolist())) == len(out)
    assert conflicts(out.view(-1, 32) * width, width) == 0


@pytest.mark.compiler
def test_a_column_is_read_where_it_was_written_and_one_outside_reads_the_zeros(
    probe: Executor,
) -> None:
    count, first = 512, 65024
    columns = torch.tensor([*range(first, first + count), 0, first - 1, first + count, -1]).int()
    written, read = torch.zeros(count).int(), torch.zeros(len(columns)).int()
    probe.launch("probe_units", (1,), (32,), (Int32(0), Int32(count), written))
    probe.launch(
        "probe_offsets", (1,), (len(columns),), (columns, *map(Int32, (first, count)), read)
    )
    places = written.view(-1, 8, 32).transpose(1, 2).flatten()  # [unit, i, lane]: by column
    assert torch.equal(read[:count], 16 * places)
    assert set(read[count:].tolist()) == {16 * (count + count // 8)}
