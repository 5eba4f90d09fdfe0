"""Linears on the lattice on the GPU's kernels, against the dense formula."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compressed_base import written_dense
from tests.kernels.cuda.resident import DTYPES, device_of
from tests.kernels.cuda.served import Machine, answers, serving
from tests.kernels.deltas import close
from tests.kernels.lattices import lattice
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import CalibrationText
from tsugiki.compress_base.caldera import Settings
from tsugiki.compress_base.caldera_job import CalderaBaseJob, caldera_base
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.lattice import REBUILD_FROM, rebuild
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.lattice import LatticeWeight, dense
from tsugiki_kernels.reference import ReferenceBackend
from tsugiki_kernels.select import Choice

# of one rounding; in float32 rotated rows keep 22 bits
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
# bits, columns: SmolLM2's widths, an odd number of groups, blocks without a Paley matrix, doublings
# of 16, 32 and 64 together
FORMS = [(2, 576), (2, 24), (3, 64), (4, 192), (4, 40), (2, 344), (3, 512), (2, 1024), (3, 1536)]
QUIET = Progress(quiet=True)


def on(device: torch.device, weight: LatticeWeight) -> LatticeWeight:
    residual = None if weight.residual is None else weight.residual.to(device)
    return replace(
        weight,
        codes=weight.codes.to(device),
        residual=residual,
        scales=weight.scales.to(device),
    )


def product(x: Tensor, weight: LatticeWeight, bias: Tensor) -> Tensor:
    return x.double() @ dense(weight).double().T + bias.double()


@DTYPES
@pytest.mark.parametrize(("bits", "columns"), FORMS)
def test_a_linear_on_the_lattice_is_its_dense_product_whatever_rows_come_with_it(
    launcher: Launcher, dtype: torch.dtype, bits: int, columns: int
) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    weight = lattice(bits, columns)
    there = on(place, weight)
    x, bias = torch.randn(14, columns).to(dtype), torch.randn(37).to(dtype)
    out, alone = torch.full((2, 14, 37), 7.0).to(dtype).to(place)
    kernels.linear_lattice(x.to(place), there, bias.to(place), out, [(0, 1), (2, 2), (3, 14)])
    expected = product(x, weight, bias)
    expected[[1, 2]] = 7.0
    assert close(out.cpu(), expected, TOLERANCE[dtype])
    for row in (3, 11):
        kernels.linear_lattice(x.to(place), there, bias.to(place), alone, [(row, row + 1)])
        assert torch.equal(out[row], alone[row])


@DTYPES
@pytest.mark.parametrize(("bits", "columns"), FORMS)
def test_a_weight_is_rebuilt(
    launcher: Launcher, dtype: torch.dtype, bits: int, columns: int
) -> None:
    weight, place = lattice(bits, columns, rows=5), launcher.device
    out = torch.zeros(weight.shape, dtype=dtype, device=place)
    rebuild(Execution(launcher), on(place, weight), out)
    assert close(out.cpu(), dense(weight).double(), TOLERANCE[dtype])


@DTYPES
def test_many_rows_meet_a_rebuilt_weight(launcher: Launcher, dtype: torch.dtype) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    weight = lattice(3, 192)
    x, bias = torch.randn(REBUILD_FROM + 1, 192).to(dtype), torch.randn(37)
    out = torch.zeros(len(x), 37, dtype=dtype, device=place)
    kernels.linear_lattice(x.to(place), on(place, weight), bias.to(place), out)
    assert close(out.cpu(), product(x, weight, bias), 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-4, 1e6, 1e30])
def test_rows_of_any_magnitude_keep_their_digits(launcher: Launcher, magnitude: float) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    weight = lattice(2, 192)
    x = magnitude * torch.randn(3, 192)
    out = torch.full((3, 37), 7.0, device=place)
    kernels.linear_lattice(x.to(place), on(place, weight), None, out)
    expected = x.double() @ dense(weight).double().T
    assert float((out.cpu().double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_what_is_not_finite_stays_so(launcher: Launcher) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    x = torch.randn(3, 192)
    x[0, 5], x[2, 7] = float("inf"), float("nan")
    out = torch.zeros(3, 37, device=place)
    kernels.linear_lattice(x.to(place), on(place, lattice(2, 192)), None, out)
    assert torch.equal(out.isfinite().all(1).cpu(), torch.tensor([False, True, False]))


def test_rows_that_are_slices_of_wider_ones_need_no_alignment(launcher: Launcher) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    weight = lattice(2, 192)
    wide_x = torch.randn(5, 301).bfloat16().to(place)
    wide_out = torch.zeros(5, 81).bfloat16().to(place)
    kernels.linear_lattice(wide_x[:, 7:199], on(place, weight), None, wide_out[:, 11:48])
    expected = product(wide_x[:, 7:199].cpu(), weight, torch.zeros(37))
    assert close(wide_out[:, 11:48].cpu(), expected, TOLERANCE[torch.bfloat16])
    assert not wide_out[:, :11].any()
    assert not wide_out[:, 48:].any()


def test_operands_that_do_not_fit_are_refused_by_name(launcher: Launcher) -> None:
    kernels, place = CudaBackend(launcher, device_of(launcher)), launcher.device
    weight = on(place, lattice(2, 192))
    x, out = torch.zeros(2, 192, device=place), torch.zeros(2, 37, device=place)
    with pytest.raises(BadArgument, match="x: expected shape"):
        kernels.linear_lattice(x[:, 8:], weight, None, out)
    with pytest.raises(BadArgument, match="out: expected shape"):
        kernels.linear_lattice(x, weight, None, out[:, 1:])
    with pytest.raises(BadArgument, match="bias: expected shape"):
        kernels.linear_lattice(x, weight, out[0, 1:].contiguous(), out)


@pytest.fixture(scope="module")
def base_on_a_lattice(
    tiny_base: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """3 bits, factors of rank 4."""
    out = tmp_path_factory.mktemp("cuda-lattice") / "base"
    text = CalibrationText(calibration_text, sequences=2, sequence_tokens=32)
    settings = Settings(bits=3, rank=4, factor_bits=4, iterations=1)
    caldera_base(CalderaBaseJob(tiny_base, out, settings, text), QUIET)
    return out


def test_a_base_on_a_lattice_and_its_variants_are_served_as_by_the_reference(
    base_on_a_lattice: Path, tmp_path: Path, machine: Machine
) -> None:
    """The prompts together have enough rows for a rebuilt weight, the answers do not."""
    folder, tuned = tmp_path / "variants", tmp_path / "tuned"
    folder.mkdir()
    tuned.mkdir()
    written_dense(base_on_a_lattice, tuned, noise=0.05)
    jobs = {"factors": ("caldera", {"rank": 8}), "signs": ("bitdelta", {})}
    for name, (codec, options) in jobs.items():
        out = folder / f"{name}.safetensors"
        compress(CompressJob(codec, base_on_a_lattice, tuned, out, options), QUIET)

    def served(on: Machine, name: str) -> list[dict[str, Any]]:
        with serving(base_on_a_lattice, folder, tmp_path / name, on) as url:
            return answers(url, ["base", *jobs])

    expected = served(Machine("cpu", lambda *_: Choice(ReferenceBackend())), "reference")
    found = served(machine, "cuda")
    assert [one["token_ids"] for one in found] == [one["token_ids"] for one in expected]
    assert len({tuple(one["token_ids"]) for one in expected[1::2]}) == 3
