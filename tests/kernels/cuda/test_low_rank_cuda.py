"""Low-rank deltas on the GPU's kernels, against the dense formula."""

import pytest
import torch

from tests.kernels.cuda.resident import (
    DTYPES,
    TOLERANCE,
    apply,
    assert_slices_need_no_alignment,
    rebuilt,
)
from tests.kernels.deltas import cast, close, dense64, expected64, low_rank
from tsugiki_kernels.cuda.kinds import LOW_RANK
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.errors import BadArgument


def delta(shape: tuple[int, int], seed: int, rank: int, dtype: torch.dtype) -> LowRankDelta:
    made = cast(low_rank(shape, seed, rank, bias=seed % 2 == 0), dtype)
    assert isinstance(made, LowRankDelta)
    return made


@DTYPES
def test_ranks_and_parts_of_many_variants_meet_their_rows_only(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    spans = [(1, 4), (4, 4), (6, 7), (9, 19)]
    ranks = [5, 16, 33, 8]
    variants = [
        [Placed(3, delta((70, 50), v, rank, dtype)), Placed(73, delta((17, 50), v + 9, 3, dtype))]
        for v, rank in enumerate(ranks)
    ]
    x, out = torch.randn(20, 50).to(dtype), torch.randn(20, 96).to(dtype)
    expected, before = expected64(x, out, variants, spans), out.clone()
    apply(LOW_RANK, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[dtype])
    untouched = [0, 4, 5, 7, 8, 19]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 90:], before[:, 90:])


@DTYPES
def test_long_inputs_are_summed_over_slices_and_long_ranks_over_panels(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    parts = [Placed(0, delta((300, 1100), 1, 150, dtype))]
    x, out = torch.randn(3, 1100).to(dtype), torch.randn(3, 300)
    expected = expected64(x, out, [parts], [(0, 3)])
    apply(LOW_RANK, launcher, x, out, [parts], [(0, 3)])
    assert close(out, expected, 1e-5)  # a float32 output: 16-bit products lose nothing


@DTYPES
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    parts = [Placed(0, delta((80, 600), 2, 12, dtype))]
    x, out = torch.randn(70, 600).to(dtype), torch.randn(70, 80).to(dtype)
    alone = out.clone()
    apply(LOW_RANK, launcher, x, out, [parts], [(0, 70)])
    for row in (0, 7, 8, 66):
        apply(LOW_RANK, launcher, x, alone, [parts], [(row, row + 1)])
        assert torch.equal(out[row], alone[row])


def test_rows_that_are_slices_of_wider_ones_need_no_alignment(launcher: Launcher) -> None:
    parts = [Placed(0, delta((32, 48), 1, 4, torch.bfloat16))]
    assert_slices_need_no_alignment(LOW_RANK, launcher, parts)


@DTYPES
@pytest.mark.parametrize(("inputs", "rank"), [(264, 5), (300, 40)])
def test_a_part_is_rebuilt_in_its_own_rows(
    launcher: Launcher, dtype: torch.dtype, inputs: int, rank: int
) -> None:
    placed = Placed(5, delta((270, inputs), 3, rank, dtype))
    base = torch.randn(280, inputs).to(dtype)
    out = rebuilt(LOW_RANK, launcher, base, placed)
    expected = base[5:275].double() + dense64(placed.delta)
    assert close(out[5:275], expected, TOLERANCE[dtype])
    assert not out[:5].any()
    assert not out[275:].any()


def test_a_list_with_room_for_more_parts_gives_the_same(launcher: Launcher) -> None:
    parts = [Placed(0, delta((40, 64), 4, 8, torch.float16))]
    x, out = torch.randn(9, 64).half(), torch.randn(9, 40).half()
    roomy = out.clone()
    apply(LOW_RANK, launcher, x, out, [parts, parts], [(0, 2), (5, 9)])
    apply(LOW_RANK, launcher, x, roomy, [parts, parts], [(0, 2), (5, 9)], capacity=37)
    assert torch.equal(out, roomy)


def test_no_rows_launch_nothing_that_writes(launcher: Launcher) -> None:
    out = torch.randn(3, 40)
    before = out.clone()
    apply(LOW_RANK, launcher, torch.randn(3, 0), out, [], [], capacity=4)
    assert torch.equal(out, before)


def test_refusals_name_the_argument(launcher: Launcher) -> None:
    parts = [Placed(0, delta((40, 64), 4, 8, torch.float32))]
    out = torch.zeros(4, 40)
    with pytest.raises(BadArgument, match="x: expected shape"):
        apply(LOW_RANK, launcher, torch.randn(4, 65), out, [parts], [(0, 4)])
    with pytest.raises(BadArgument, match="out: expected at least 40 columns"):
        apply(LOW_RANK, launcher, torch.randn(4, 64), out[:, :39], [parts], [(0, 4)])
    with pytest.raises(BadArgument, match="spans: 1 parts, the list holds 0"):
        apply(LOW_RANK, launcher, torch.randn(4, 64), out, [parts], [(0, 4)], capacity=0)
