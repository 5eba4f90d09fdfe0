"""`compress-base caldera`: what it writes, that it is what is served, that it goes on."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.cli import main
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import CalibrationText
from tsugiki.compress_base.caldera import Settings
from tsugiki.compress_base.caldera_job import REPORT_FILE, CalderaBaseJob, caldera_base
from tsugiki.errors import CompressionRefused, ConfigError, UnsupportedModel
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint, derived_from
from tsugiki.model.loader import load_base

QUIET = Progress(quiet=True)
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def test_the_directory_names_its_origin_and_keeps_the_rest(
    tiny_base: Path, caldera_directory: Path
) -> None:
    before, after = open_checkpoint(tiny_base), open_checkpoint(caldera_directory)
    assert after.names() == before.names()
    assert derived_from(after.config) == base_fingerprint(before, None)
    assert (caldera_directory / "tokenizer.json").is_file()
    for name in before.names():
        assert after.shape(name) == before.shape(name)
        if not after.is_compressed(name):
            assert torch.equal(after.tensor(name), before.tensor(name))
    moved = after.tensor(Q_PROJ) - before.tensor(Q_PROJ).float()
    assert 0.05 < float(moved.norm() / before.tensor(Q_PROJ).float().norm()) < 0.4


def test_it_is_served_as_transformers_runs_it(
    caldera_directory: Path,
    dense_copy: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    assert torch.allclose(served(caldera_directory), oracle(dense_copy), atol=1e-4)


def test_the_report_counts_every_byte(caldera_directory: Path, tiny_base: Path) -> None:
    report = json.loads((caldera_directory / REPORT_FILE).read_text())
    stored = load_file(caldera_directory / "model.safetensors")
    linears = report["linears"]
    found = sum(line["backbone_bytes"] + line["factor_bytes"] for line in linears)
    assert found + report["other_bytes"] == sum(t.nbytes for t in stored.values())
    weights = sum(line["weights"] for line in linears)
    assert report["bits_per_weight"] == pytest.approx(8 * found / weights)
    assert all(len(line["errors"]) == 2 for line in linears)
    base = load_base(caldera_directory)
    form = base.decoder.weights.linears["layers.0.gate_up"]
    assert form.nbytes == 256 * 64 // 4 + 256 * 2 + 2 * 4 * (128 + 64) * 2
    assert base.factors_of(Q_PROJ) is not None
    assert load_base(tiny_base).factors_of(Q_PROJ) is None


def test_on_another_device_the_same_base_is_made(
    tiny_base: Path,
    calibration_text: Path,
    tmp_path: Path,
    another_device: AbstractContextManager[torch.device],
) -> None:
    text = CalibrationText(calibration_text, sequences=2, sequence_tokens=16)
    settings = Settings(bits=3, rank=2, factor_bits=4, iterations=1)
    job = CalderaBaseJob(tiny_base, tmp_path / "here", settings, text)
    here = caldera_base(job, QUIET)
    with another_device as gpu:
        there = caldera_base(replace(job, out=tmp_path / "there", device=gpu), QUIET)
    assert there.error == pytest.approx(here.error, rel=0.02)
    assert there.nbytes == here.nbytes


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    tiny_base: Path, calibration_text: Path, caldera_directory: Path, tmp_path: Path
) -> None:
    text = CalibrationText(calibration_text, sequences=4, sequence_tokens=64)
    settings = Settings(bits=2, rank=4, factor_bits=4, iterations=2)
    job = CalderaBaseJob(tiny_base, tmp_path / "again", settings, text)

    class Interrupted(Exception):
        pass

    class StopsAfterOne(Progress):
        def track(self, items, what, total=None):  # type: ignore[no-untyped-def]
            for i, item in enumerate(items):
                if i == 1:
                    raise Interrupted
                yield item

    with pytest.raises(Interrupted):
        caldera_base(job, StopsAfterOne(quiet=True))
    assert (job.partial / "0.json").is_file()
    assert not job.out.exists()
    other = CalderaBaseJob(tiny_base, job.out, Settings(bits=3), text)
    with pytest.raises(ConfigError, match="other settings"):
        caldera_base(other, QUIET)
    caldera_base(job, QUIET)
    assert not job.partial.exists()
    name = "model.safetensors"
    assert (job.out / name).read_bytes() == (caldera_directory / name).read_bytes()


def test_damaged_tensors_settings_and_compressed_bases_are_refused_by_name(
    caldera_directory: Path, tmp_path: Path
) -> None:
    tensors = load_file(caldera_directory / "model.safetensors")
    config = json.loads((caldera_directory / "config.json").read_text())
    tensors[f"{Q_PROJ}.scales"] = tensors[f"{Q_PROJ}.scales"] * torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"q_proj.*scales holds NaN"):
        load_base(tmp_path)
    config["tsugiki"]["caldera"]["bits"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="a lattice of 5 bits"):
        load_base(tmp_path)
    job = CalderaBaseJob(caldera_directory, tmp_path / "x", Settings(rank=2))
    with pytest.raises(CompressionRefused, match="compressed already"):
        caldera_base(job, QUIET)
    wrong = ["compress-base", "caldera", "--base", str(caldera_directory), "--groups", "2"]
    assert main([*wrong, "--out", str(tmp_path / "y")]) == 1
