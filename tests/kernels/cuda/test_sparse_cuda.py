"""Sparse deltas on the GPU's kernels, against the dense formula."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.cuda.resident import (
    DTYPES,
    TOLERANCE,
    apply,
    assert_slices_need_no_alignment,
    device_of,
    rebuilt,
)
from tests.kernels.deltas import close, expected64, sparse
from tsugiki.codecs.masks import Mask, drawn, drawn_by
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.kinds import SPARSE
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.device import CpuDevice
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.operands import ColumnDraw
from tsugiki_kernels.reference import ReferenceBackend

ZEROS = {1: 0.25, 2: -3.0, 4: 8.0, 8: 127.3}
BITS = pytest.mark.parametrize("bits", [1, 2, 4, 8])


@DTYPES
@BITS
@pytest.mark.parametrize("rows_per_mask", [1, 3, 16, 48])
def test_a_delta_is_added_to_the_rows_of_its_variant(
    launcher: Launcher, dtype: torch.dtype, bits: int, rows_per_mask: int
) -> None:
    kind = {"rows_per_mask": rows_per_mask, "bits": bits}
    variants = [
        [
            Placed(3, sparse((70, 52), v, kept=9, rows_per_step=16, bias=6, **kind)),
            Placed(73, sparse((17, 52), v + 9, kept=52, rows_per_step=5, bias=32, **kind)),
        ]
        for v in range(4)
    ]
    spans = [(1, 4), (4, 4), (6, 7), (9, 20)]
    x, out = torch.randn(21, 52).to(dtype), torch.randn(21, 96).to(dtype)
    expected, before = expected64(x, out, variants, spans), out.clone()
    apply(SPARSE, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[dtype])
    untouched = [0, 4, 5, 7, 8, 20]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 90:], before[:, 90:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_per_mask", [1, 16])
def test_a_float_output_loses_nothing_and_a_zero_point_may_be_anywhere(
    launcher: Launcher, dtype: torch.dtype, rows_per_mask: int
) -> None:
    kind = {"rows_per_mask": rows_per_mask, "kept": 40}
    made = [replace(sparse((33, 300), b, bits=b, **kind), zero=z) for b, z in ZEROS.items()]
    variants = [[Placed(0, delta)] for delta in made]
    spans = [(i, i + 1) for i in range(len(made))]
    x, out = torch.randn(len(made), 300).to(dtype), torch.randn(len(made), 33)
    expected = expected64(x, out, variants, spans)
    apply(SPARSE, launcher, x, out, variants, spans)
    assert close(out, expected, 1e-5)


@DTYPES
@pytest.mark.parametrize("rows_per_mask", [1, 16])
def test_inputs_beyond_one_window_are_taken_window_by_window(
    launcher: Launcher, dtype: torch.dtype, rows_per_mask: int
) -> None:
    delta = sparse((20, 8300), 3, rows_per_mask=rows_per_mask, bits=1, kept=500)
    x, out = torch.randn(2, 8300).to(dtype), torch.zeros(2, 20)
    expected = expected64(x, out, [[Placed(0, delta)]], [(0, 2)])
    apply(SPARSE, launcher, x, out, [[Placed(0, delta)]], [(0, 2)])
    assert close(out, expected, 1e-5)


@DTYPES
@pytest.mark.parametrize("rows_per_mask", [1, 16])
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(
    launcher: Launcher, dtype: torch.dtype, rows_per_mask: int
) -> None:
    parts = [Placed(0, sparse((40, 96), 2, rows_per_mask=rows_per_mask, bits=4, kept=20))]
    x, out = torch.randn(70, 96).to(dtype), torch.randn(70, 40).to(dtype)
    alone = out.clone()
    apply(SPARSE, launcher, x, out, [parts], [(0, 70)])
    for row in (0, 7, 8, 66, 69):
        apply(SPARSE, launcher, x, alone, [parts], [(row, row + 1)])
        assert torch.equal(out[row], alone[row])


def test_one_list_may_hold_both_forms(launcher: Launcher) -> None:
    variants = [[Placed(0, sparse((40, 64), v, rows_per_mask=r))] for v, r in enumerate((1, 16, 1))]
    spans = [(0, 2), (2, 5), (5, 6)]
    x, out = torch.randn(6, 64).half(), torch.randn(6, 40).half()
    expected = expected64(x, out, variants, spans)
    apply(SPARSE, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[torch.float16])


@pytest.mark.parametrize("rows_per_mask", [1, 16])
def test_rows_that_are_slices_of_wider_ones_need_no_alignment(
    launcher: Launcher, rows_per_mask: int
) -> None:
    parts = [Placed(0, sparse((32, 48), 1, rows_per_mask=rows_per_mask))]
    assert_slices_need_no_alignment(SPARSE, launcher, parts)


@DTYPES
@BITS
@pytest.mark.parametrize("rows_per_mask", [1, 16])
@pytest.mark.parametrize("inputs", [52, 1088])
def test_a_rebuilt_weight_is_the_references_to_the_bit(
    launcher: Launcher, dtype: torch.dtype, bits: int, rows_per_mask: int, inputs: int
) -> None:
    delta = sparse((37, inputs), bits, rows_per_mask=rows_per_mask, bits=bits, kept=50)
    base = torch.randn(60, inputs).to(dtype)
    expected, reference = base.clone(), ReferenceBackend()
    reference.reconstruct(base, reference.stage([Placed(5, delta)]), expected)
    out = rebuilt(SPARSE, launcher, base, Placed(5, delta))
    assert torch.equal(out[5:42], expected[5:42])
    assert not out[:5].any()
    assert not out[42:].any()


@pytest.mark.parametrize(
    ("columns", "group_size", "alpha"), [(52, 16, 5), (2100, 2100, 64), (96, 48, 1)]
)
def test_masks_are_the_formats_to_the_bit(
    launcher: Launcher, columns: int, group_size: int, alpha: int
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    mask = Mask(0xF123456789ABCDEF, name, 40, columns, alpha, group_size, 16)
    kernels = CudaBackend(launcher, device_of(launcher))
    found = drawn_by(kernels, launcher.device)(mask)
    assert torch.equal(found.cpu().int(), drawn(mask).int())


@pytest.mark.compiler
def test_a_mask_that_keeps_more_than_a_group_has_is_not_drawn(executor: Launcher) -> None:
    with pytest.raises(BadArgument, match="kept=17"):
        CudaBackend(executor, CpuDevice()).draw_columns(
            ColumnDraw(0, 0, 3, 52, 16, kept=17, kept_of_rest=1)
        )
