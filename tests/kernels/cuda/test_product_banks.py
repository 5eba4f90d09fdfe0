"""Shared memory of the low-rank and sign kernels, by the index functions that the kernels use."""

from pathlib import Path

import pytest
import torch

from tests.kernels.cuda.executor import Executor
from tests.kernels.cuda.test_sparse_banks import conflicts
from tsugiki_kernels.cuda.launcher import Int32

PROBES = Path(__file__).parent / "probes"
WARPS, ROWS, RANKS, OUTPUTS = 4, 8, 16, 64  # of one block's sums


@pytest.fixture(scope="module")
def probe(shim_cache: Path) -> Executor:
    return Executor(shim_cache, sources=PROBES)


@pytest.mark.compiler
def test_sums_of_ranks_are_stored_and_loaded_in_32_banks_each_once(probe: Executor) -> None:
    stored = torch.zeros(2, 128, dtype=torch.int32)
    probe.launch("probe_low_rank_stored", (1,), (128,), (stored,))
    assert conflicts(4 * stored.view(-1, 32), 8) == 0
    loaded = torch.zeros(WARPS, 128, dtype=torch.int32)
    probe.launch("probe_low_rank_loaded", (1,), (128,), (loaded,))
    assert conflicts(4 * loaded.view(-1, 32), 4) == 0
    everything = torch.arange(WARPS * ROWS * RANKS).int()
    assert torch.equal(torch.cat([stored, stored + 1]).flatten().sort().values, everything)
    assert torch.equal(loaded.flatten().sort().values, everything)


@pytest.mark.compiler
@pytest.mark.parametrize("count", [16, 48, 80, 128])
def test_ranks_of_the_second_pass_are_stored_and_loaded_in_32_banks(
    probe: Executor, count: int
) -> None:
    stored = torch.zeros(ROWS * count // 4, dtype=torch.int32)
    probe.launch("probe_low_rank_t_stored", (1,), (128,), (Int32(count), stored))
    assert conflicts(4 * stored.view(-1, 32), 16) == 0
    for rank in range(0, count, RANKS):
        loaded = torch.zeros(32, dtype=torch.int32)
        probe.launch("probe_low_rank_t_loaded", (1,), (32,), (Int32(rank), loaded))
        assert conflicts(4 * loaded, 16) == 0
        assert set(loaded.tolist()) <= set(stored.tolist())


@pytest.mark.compiler
def test_sums_of_signs_are_stored_and_loaded_in_32_banks_each_once(probe: Executor) -> None:
    stored = torch.zeros(4, 32, dtype=torch.int32)
    probe.launch("probe_sign_stored", (1,), (32,), (stored,))
    assert conflicts(4 * stored, 16) == 0
    loaded = torch.zeros(WARPS, 2, OUTPUTS, dtype=torch.int32)
    probe.launch("probe_sign_loaded", (1,), (OUTPUTS,), (loaded,))
    assert conflicts(4 * loaded.view(-1, 32), 16) == 0
    assert len(set(stored.flatten().tolist())) == ROWS * OUTPUTS // 4
    assert set(loaded[0].flatten().tolist()) == set(stored.flatten().tolist())
