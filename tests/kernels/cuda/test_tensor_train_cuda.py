"""Tensor trains with sparse entries on the GPU's kernels, against the dense
formula."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.cuda.resident import (
    DTYPES,
    TOLERANCE,
    apply,
    assert_slices_need_no_alignment,
    rebuilt,
)
from tests.kernels.cuda.served import Machine, answers, serving
from tests.kernels.deltas import cast, close, dense64, expected64, tensor_train
from tsugiki.codecs.base import PlacedPacked
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.saten import CODEC
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki_kernels.cuda.kinds import TENSOR_TRAIN
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.tensor_train_pair import pair_of
from tsugiki_kernels.deltas import Placed, Stage, TensorTrainDelta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.reference import ReferenceBackend
from tsugiki_kernels.select import Choice

MODES = (
    "low-rank",
    "matrix",
    "vector",
    "24x2 3x140",
    "3x140 24x2",
    "2x1 9x40 4x7",
    "6x1 1x14 12x1 1x20",
)
QUIET = Progress(quiet=True)


def delta(shape: tuple[int, int], seed: int, dtype: torch.dtype, **how: Any) -> TensorTrainDelta:
    made = cast(tensor_train(shape, seed, **how), dtype)
    assert isinstance(made, TensorTrainDelta)
    return made


def packed(modes: str, dtype: torch.dtype) -> TensorTrainDelta:
    """A random change of [72, 280] as the codec makes it resident."""
    change = torch.randn(72, 280, generator=torch.Generator().manual_seed(1))
    options = {"modes": modes, "rank": 6, "density": 0.05}
    made = CODEC.compress(torch.zeros(72, 280), change, None, options)
    return CODEC.resident(PlacedPacked(0, made), dtype, MaskCache())


@DTYPES
def test_trains_and_entries_of_many_variants_meet_their_rows_only(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    spans = [(1, 4), (4, 4), (6, 7), (9, 19)]
    forms: list[dict[str, Any]] = [
        {"rank": 3, "coded": True, "entries": 19},
        {"rank": 3},
        {"rank": 0, "entries": 25},
        {"rank": 7, "entries": 0},
    ]
    variants = [
        [
            Placed(3, delta((70, 50), v, dtype, **how)),
            Placed(73, delta((16, 50), v + 9, dtype, coded=True)),
        ]
        for v, how in enumerate(forms)
    ]
    x, out = torch.randn(20, 50).to(dtype), torch.randn(20, 96).to(dtype)
    expected, before = expected64(x, out, variants, spans), out.clone()
    apply(TENSOR_TRAIN, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[dtype])
    untouched = [0, 4, 5, 7, 8, 19]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 89:], before[:, 89:])


@pytest.mark.parametrize("modes", MODES)
def test_trains_of_any_modes_are_met_from_either_end_and_rebuilt(
    launcher: Launcher, modes: str
) -> None:
    parts = [Placed(0, packed(modes, torch.float32))]
    x, out = torch.randn(6, 280), torch.zeros(6, 72)
    expected = expected64(x, out, [parts], [(0, 6)])
    apply(TENSOR_TRAIN, launcher, x, out, [parts], [(0, 6)])
    assert close(out, expected, TOLERANCE[torch.float32])
    base = torch.randn(72, 280)
    found = rebuilt(TENSOR_TRAIN, launcher, base, parts[0])
    assert close(found, base.double() + dense64(parts[0].delta), TOLERANCE[torch.float32])


@DTYPES
def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    parts = [Placed(0, packed("low-rank", dtype))]
    x, out = torch.randn(70, 280).to(dtype), torch.randn(70, 72).to(dtype)
    alone = out.clone()
    apply(TENSOR_TRAIN, launcher, x, out, [parts], [(0, 70)])
    for row in (0, 7, 8, 66):
        apply(TENSOR_TRAIN, launcher, x, alone, [parts], [(row, row + 1)])
        assert torch.equal(out[row], alone[row])


def test_a_float32_output_of_16_bit_rows_loses_nothing(launcher: Launcher) -> None:
    parts = [Placed(0, packed("matrix", torch.bfloat16))]
    x, out = torch.randn(5, 280).bfloat16(), torch.randn(5, 72)
    expected = expected64(x, out, [parts], [(0, 5)])
    apply(TENSOR_TRAIN, launcher, x, out, [parts], [(0, 5)])
    assert close(out, expected, TOLERANCE[torch.float32])


def test_rows_that_are_slices_of_wider_ones_need_no_alignment(launcher: Launcher) -> None:
    parts = [Placed(0, delta((32, 48), 1, torch.bfloat16))]
    assert_slices_need_no_alignment(TENSOR_TRAIN, launcher, parts)


@DTYPES
@pytest.mark.parametrize(("inputs", "entries"), [(264, 0), (600, 40)])
def test_a_part_is_rebuilt_in_its_own_rows(
    launcher: Launcher, dtype: torch.dtype, inputs: int, entries: int
) -> None:
    placed = Placed(5, delta((20, inputs), 3, dtype, entries=entries, coded=True))
    base = torch.randn(30, inputs).to(dtype)
    out = rebuilt(TENSOR_TRAIN, launcher, base, placed)
    expected = base[5:25].double() + dense64(placed.delta)
    assert close(out[5:25], expected, TOLERANCE[dtype])
    assert not out[:5].any()
    assert not out[25:].any()


def test_what_is_no_train_met_from_an_end_is_refused_by_name() -> None:
    for stages in ([Stage(2, 3, 4, 1), Stage(4, 2, 5, 1)], [Stage(1, 280, 72, 1)]):
        with pytest.raises(BadArgument, match=r"stages: .* --kernels reference"):
            pair_of(stages)


def test_saten_variants_are_served_as_by_the_reference(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path, machine: Machine
) -> None:
    folder = tmp_path / "variants"
    folder.mkdir()
    options = {"rank": 4, "density": 0.1}
    for name, more in {"trains": {"modes": "matrix"}, "ranks": {}}.items():
        out = folder / f"{name}.safetensors"
        compress(CompressJob("saten", tiny_base, tiny_tuned, out, options=options | more), QUIET)

    def served(on: Machine, name: str) -> list[dict[str, Any]]:
        with serving(tiny_base, folder, tmp_path / name, on) as url:
            return answers(url, ["base", "trains", "ranks"])

    expected = served(Machine("cpu", lambda *_: Choice(ReferenceBackend())), "reference")
    found = served(machine, "cuda")
    assert [one["token_ids"] for one in found] == [one["token_ids"] for one in expected]
    assert expected[0]["token_ids"] != expected[-1]["token_ids"]
