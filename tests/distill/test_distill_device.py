"""Training elsewhere than on the CPU: everything follows the device, files do not tell it."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tsugiki.compress.progress import Progress
from tsugiki.distill.job import DistillJob, DistillPlan, run_distill
from tsugiki.distill.lora_student import LoraSettings
from tsugiki.distill.prune import prune
from tsugiki.distill.trainer import TrainingPlan
from tsugiki.errors import ConfigError
from tsugiki.model.device import choose_device

QUIET = Progress(quiet=True)
PLAN = DistillPlan(TrainingPlan(steps=1), LoraSettings(rank=2), batch_tokens=512, held_out=2)


def test_a_variant_distilled_on_a_device_is_the_one_distilled_on_the_cpu(
    deep_base: Path,
    distill_data: Path,
    tmp_path: Path,
    another_device: AbstractContextManager[torch.device],
) -> None:
    student = tmp_path / "student"
    prune(deep_base, 4, student, None, QUIET)
    here = DistillJob(
        deep_base,
        student,
        distill_data,
        tmp_path / "here",
        tmp_path,
        dtype=torch.float32,
        teacher_cache=tmp_path / "cache-here",
        checkpoint_every=1,
    )
    run_distill(here, PLAN, QUIET)
    with another_device as gpu:
        there = replace(
            here, out=tmp_path / "there", device=gpu, teacher_cache=tmp_path / "cache-there"
        )
        run_distill(there, PLAN, QUIET)
    expected, found = load_file(here.out), load_file(there.out)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        # a first step is as large however small its gradient: one near 0 may go the other way
        different = (found[name] - tensor).abs() > 1e-5
        assert float(different.float().mean()) < 0.02, name


def test_a_device_that_is_not_there_is_refused_and_auto_goes_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="--device gpu: one of auto, cpu, cuda"):
        choose_device("gpu")
