"""Sign deltas on the GPU's kernels, against the dense formula."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.cuda.resident import (
    DTYPES,
    TOLERANCE,
    apply,
    assert_slices_need_no_alignment,
    rebuilt,
)
from tests.kernels.deltas import close, dense64, expected64, sign
from tsugiki_kernels.cuda.kinds import SIGN
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.deltas import Placed, SignDelta
from tsugiki_kernels.errors import BadArgument


def delta(shape: tuple[int, int], seed: int, bias: bool = False) -> SignDelta:
    return replace(sign(shape, seed), bias=torch.randn(shape[0]) if bias else None)


@DTYPES
def test_signs_and_parts_of_many_variants_meet_their_rows_only(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    spans = [(1, 4), (4, 4), (6, 7), (9, 19)]
    variants = [
        [Placed(3, delta((70, 50), v, bias=v == 0)), Placed(73, delta((17, 50), v + 9))]
        for v in range(len(spans))
    ]
    x, out = torch.randn(20, 50).to(dtype), torch.randn(20, 96).to(dtype)
    expected, before = expected64(x, out, variants, spans), out.clone()
    apply(SIGN, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[dtype])
    untouched = [0, 4, 5, 7, 8, 19]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 90:], before[:, 90:])


@DTYPES
def test_long_inputs_are_shared_among_the_warps(launcher: Launcher, dtype: torch.dtype) -> None:
    parts = [Placed(0, delta((130, 1300), 1))]
    x, out = torch.randn(3, 1300).to(dtype), torch.randn(3, 130)
    expected = expected64(x, out, [parts], [(0, 3)])
    apply(SIGN, launcher, x, out, [parts], [(0, 3)])
    assert close(out, expected, 2e-6)  # a float32 output: 16-bit products lose nothing


@DTYPES
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    parts = [Placed(0, delta((80, 600), 2))]
    x, out = torch.randn(75, 600).to(dtype), torch.randn(75, 80).to(dtype)
    alone, before = out.clone(), out.clone()
    apply(SIGN, launcher, x, out, [parts], [(0, 75)])
    for row in (0, 7, 8, 66):
        apply(SIGN, launcher, x, alone, [parts], [(row, row + 1)])
        assert torch.equal(out[row], alone[row])
    apply(SIGN, launcher, x, before, [parts, parts], [(0, 20), (20, 75)])
    assert torch.equal(out, before)


def test_rows_that_are_slices_of_wider_ones_need_no_alignment(launcher: Launcher) -> None:
    parts = [Placed(0, delta((32, 48), 1))]
    assert_slices_need_no_alignment(SIGN, launcher, parts)


@DTYPES
@pytest.mark.parametrize("inputs", [264, 300])
def test_a_part_is_rebuilt_in_its_own_rows(
    launcher: Launcher, dtype: torch.dtype, inputs: int
) -> None:
    placed = Placed(5, delta((70, inputs), 3))
    base = torch.randn(80, inputs).to(dtype)
    out = rebuilt(SIGN, launcher, base, placed)
    expected = base[5:75].double() + dense64(placed.delta)
    assert close(out[5:75], expected, TOLERANCE[dtype])
    assert not out[:5].any()
    assert not out[75:].any()


def test_refusals_name_the_argument(launcher: Launcher) -> None:
    parts = [Placed(0, delta((40, 64), 4))]
    with pytest.raises(BadArgument, match="x: expected shape"):
        apply(SIGN, launcher, torch.randn(4, 65), torch.zeros(4, 40), [parts], [(0, 4)])
    with pytest.raises(BadArgument, match=r"x: expected torch\.float32"):
        apply(SIGN, launcher, torch.zeros(4, 64).int(), torch.zeros(4, 40), [parts], [(0, 4)])
    with pytest.raises(BadArgument, match="base: expected \\[at least 40, 64\\]"):
        rebuilt(SIGN, launcher, torch.zeros(39, 64), parts[0])
