"""Looked-up weights on the GPU's kernels, against the dense formula."""

from pathlib import Path
from typing import Any

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
from tests.kernels.cuda.served import Machine, answers, serving
from tests.kernels.deltas import close, dense64, expected64
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.job import SketchBaseJob, sketch_base
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.codebooks import CodebookWeight, IndexMap, looked_up
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.kinds import CODEBOOKS
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.deltas import CodebookDelta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.reference import ReferenceBackend
from tsugiki_kernels.select import Choice

FORMS = pytest.mark.parametrize(("bits", "groups"), [(4, 1), (4, 5), (3, 5), (2, 1)])
QUIET = Progress(quiet=True)


def index(shape: tuple[int, int], bits: int, groups: int) -> IndexMap:
    size = (shape[0], shape[1] * bits // 8)
    codes = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(bits))
    return IndexMap(shape, bits, groups, codes.to(torch.uint8))


def delta(of: IndexMap, seed: int, *, coded: bool) -> CodebookDelta:
    generator = torch.Generator().manual_seed(seed)
    if not coded:
        halves = torch.randn(of.codebook_shape, generator=generator).half()
        return CodebookDelta(of, 0.3, halves, None, None)
    codes = torch.randint(-128, 128, of.codebook_shape, generator=generator).to(torch.int8)
    step = torch.rand(of.shape[0], generator=generator).half()
    return CodebookDelta(of, 0.02, codes, step, torch.randn(of.shape[0], generator=generator))


@DTYPES
@FORMS
def test_changes_of_codebooks_of_many_variants_meet_their_rows_only(
    launcher: Launcher, dtype: torch.dtype, bits: int, groups: int
) -> None:
    spans = [(1, 4), (4, 4), (6, 7), (9, 19)]
    one, two = index((70, 280), bits, groups), index((17, 280), bits, groups)
    variants = [
        [Placed(3, delta(one, v, coded=v != 2)), Placed(73, delta(two, v + 9, coded=True))]
        for v in range(len(spans))
    ]
    x, out = torch.randn(20, 280).to(dtype), torch.randn(20, 96).to(dtype)
    expected, before = expected64(x, out, variants, spans), out.clone()
    apply(CODEBOOKS, launcher, x, out, variants, spans)
    assert close(out, expected, TOLERANCE[dtype])
    untouched = [0, 4, 5, 7, 8, 19]
    assert torch.equal(out[untouched], before[untouched])
    assert torch.equal(out[:, :3], before[:, :3])
    assert torch.equal(out[:, 90:], before[:, 90:])


@DTYPES
def test_a_sketched_linear_is_its_dense_product_whatever_rows_come_with_it(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    of = index((70, 280), 4, 5)
    values = torch.randn(of.codebook_shape, generator=torch.Generator().manual_seed(1)).half()
    kernels = CudaBackend(launcher, device_of(launcher))
    place = launcher.device
    weight = CodebookWeight(
        IndexMap(of.shape, of.bits, of.groups, of.codes.to(place)), values.to(place)
    )
    x, bias = torch.randn(75, 280).to(dtype), torch.randn(70).to(dtype)
    out, alone = torch.zeros(75, 70).to(dtype).to(place), torch.zeros(75, 70).to(dtype).to(place)
    kernels.linear_codebooks(x.to(place), weight, bias.to(place), out, [(0, 3), (4, 75)])
    expected = x.double() @ looked_up(of, values).double().T + bias.double()
    expected[3] = 0
    assert close(out.cpu(), expected, TOLERANCE[dtype])
    for row in (0, 7, 66):
        kernels.linear_codebooks(x.to(place), weight, bias.to(place), alone, [(row, row + 1)])
        assert torch.equal(out[row], alone[row])


def test_rows_that_are_slices_of_wider_ones_need_no_alignment(launcher: Launcher) -> None:
    parts = [Placed(0, delta(index((32, 48), 4, 2), 1, coded=True))]
    assert_slices_need_no_alignment(CODEBOOKS, launcher, parts)


@DTYPES
def test_a_part_is_rebuilt_in_its_own_rows(launcher: Launcher, dtype: torch.dtype) -> None:
    placed = Placed(5, delta(index((70, 264), 3, 1), 3, coded=True))
    base = torch.randn(80, 264).to(dtype)
    out = rebuilt(CODEBOOKS, launcher, base, placed)
    expected = base[5:75].double() + dense64(placed.delta)
    assert close(out[5:75], expected, TOLERANCE[dtype])
    assert not out[:5].any()
    assert not out[75:].any()


def test_what_the_kernels_do_not_take_is_refused_by_name(launcher: Launcher) -> None:
    kernels = CudaBackend(launcher, device_of(launcher))
    for of in (index((8, 48), 4, 4), index((8, 256), 4, 32)):
        with pytest.raises(BadArgument, match=r"groups: .* --kernels reference"):
            kernels.stage([Placed(0, delta(of, 1, coded=True))])


@pytest.fixture(scope="module")
def sketched(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sketched base, made without calibration."""
    out = tmp_path_factory.mktemp("cuda-sketched") / "base"
    sketch_base(SketchBaseJob(tiny_base, out, SketchSettings(4, 2)), QUIET)
    return out


def test_a_sketched_base_and_its_variants_are_served_as_by_the_reference(
    sketched: Path, tiny_tuned: Path, tmp_path: Path, machine: Machine
) -> None:
    folder = tmp_path / "variants"
    folder.mkdir()
    job = CompressJob(
        "sketch", sketched, tiny_tuned, folder / "books.safetensors", {"bits": 4, "groups": 2}
    )
    compress(job, QUIET)

    def served(on: Machine, name: str) -> list[dict[str, Any]]:
        with serving(sketched, folder, tmp_path / name, on) as url:
            return answers(url, ["base", "books"])

    expected = served(Machine("cpu", lambda *_: Choice(ReferenceBackend())), "reference")
    found = served(machine, "cuda")
    assert [one["token_ids"] for one in found] == [one["token_ids"] for one in expected]
    assert expected[0]["token_ids"] != expected[-1]["token_ids"]
