"""`tune caldera`: factors start out as the base's own, learn, and are served as they are stored."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsugiki.cli import main
from tsugiki.codecs import artifact
from tsugiki.codecs.factors import Factors
from tsugiki.compress.decompress import decompress
from tsugiki.compress.job import open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.distill.trainer import TrainingPlan
from tsugiki.errors import ConfigError
from tsugiki.tune.caldera import CalderaTunePlan, make_student, of_rank, tune_caldera
from tsugiki.tune.compressed import TuneJob

QUIET = Progress(quiet=True)
PLAN = CalderaTunePlan(
    TrainingPlan(6, betas=(0.9, 0.999), decay="linear"),
    learning_rate=3e-3,
    batch_tokens=256,
    held_out=2,
    rank=6,
    factor_bits=16,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    pairs = [("What is the capital of France?", "Paris."), ("How many apples?", "#### 42")] * 6
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("rank", [4, 6])
def test_the_student_starts_out_as_the_base(
    rank: int, caldera_directory: Path, oracle: Callable[[Path], Tensor], dense_copy: Path
) -> None:
    student = make_student(open_base(caldera_directory), torch.float32, replace(PLAN, rank=rank))
    with torch.inference_mode():
        logits = student.model(torch.arange(3, 19)[None]).logits[0]
    assert torch.allclose(logits, oracle(dense_copy), atol=1e-4)
    assert {line.factors().rank for line in student.linears.values()} == {rank}


def test_fewer_ranks_are_the_best_of_them_and_both_sides_weigh_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(24, 8, generator=generator), torch.randn(8, 16, generator=generator)
    found = of_rank(Factors(left, right), 3, seed=0)
    left_out = torch.linalg.svdvals(left @ right)[3:].norm()
    assert float((left @ right - found.product()).norm()) == pytest.approx(
        float(left_out), rel=1e-4
    )
    assert torch.allclose(found.left.norm(dim=0), found.right.norm(dim=1), rtol=1e-4)


def test_a_tuned_variant_learns_and_is_served_as_transformers_runs_it(
    caldera_directory: Path,
    data: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    out = tmp_path / "tuned.safetensors"
    job = TuneJob(caldera_directory, data, out, tmp_path, dtype=torch.float32)
    tuned = tune_caldera(job, PLAN, QUIET)
    assert tuned.after < tuned.before
    checkpoint = tmp_path / "decompressed"
    variant = open_variant(out, str(caldera_directory), tmp_path)
    decompress(variant, checkpoint, torch.float32, QUIET)
    assert torch.allclose(served(caldera_directory, out), oracle(checkpoint), atol=1e-4)
    assert artifact.read_header(out).options == {"factor_bits": 16, "rank": 6}


def test_on_another_device_the_same_is_learned(
    caldera_directory: Path,
    data: Path,
    tmp_path: Path,
    another_device: AbstractContextManager[torch.device],
) -> None:
    job = TuneJob(caldera_directory, data, tmp_path / "here", tmp_path, dtype=torch.float32)
    plan = replace(PLAN, training=TrainingPlan(1))
    here = tune_caldera(job, plan, QUIET)
    with another_device as gpu:
        there = tune_caldera(replace(job, out=tmp_path / "there", device=gpu), plan, QUIET)
    assert there.after == pytest.approx(here.after, rel=1e-3)


def test_a_dense_base_and_another_codec_s_flag_are_refused_by_name(
    tiny_base: Path, caldera_directory: Path, data: Path, tmp_path: Path
) -> None:
    job = TuneJob(tiny_base, data, tmp_path / "x.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="no lattice backbone"):
        tune_caldera(job, PLAN, QUIET)
    asked = ["tune", "caldera", "--base", str(caldera_directory), "--data", str(data)]
    assert main([*asked, "--out", str(job.out), "--value-bits", "8"]) == 1
