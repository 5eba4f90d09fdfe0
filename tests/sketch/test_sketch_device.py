"""Sketching and training a sketched base elsewhere than on the CPU: all follows the device."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.pretended_gpu import pretended_gpu
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.layers import LayerWalk
from tsugiki.compress_base.sensitivity import indifferent, sensitivity
from tsugiki.compress_base.sketch import sketch_linear
from tsugiki.model.device import CPU
from tsugiki.model.sketched import SketchSettings
from tsugiki.tune.sketch_base import FitJob, FitPlan, fit_sketched_base

QUIET = Progress(quiet=True)


def test_a_linear_sketched_on_a_device_is_the_one_sketched_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, x = (torch.randn(n, 16, generator=generator) for n in (4, 40))
    settings = SketchSettings(2, 2)
    with pretended_gpu() as gpu:
        for gram in (x.T @ x, None):
            found = []
            for device in (CPU, gpu):
                known = indifferent(16, device)
                costs = known if gram is None else sensitivity(gram.to(device))
                found.append(sketch_linear(weight, costs, settings).weight)
            assert torch.equal(found[0].index.codes, found[1].index.codes)
            assert torch.equal(found[0].codebooks, found[1].codebooks)


def test_calibration_on_a_device_sees_what_it_sees_on_the_cpu(tiny_base: Path) -> None:
    model = load_model(tiny_base)
    ids = torch.arange(3, 67).view(2, 32)

    def grams(device: torch.device) -> dict[str, torch.Tensor]:
        walk = LayerWalk(model.to(device), ids.to(device))
        walk.advance(0)
        return {name: gram.to(CPU) for name, gram in walk.grams(1).items()}

    expected = grams(CPU)
    with pretended_gpu() as gpu:
        found = grams(gpu)
    for name, gram in expected.items():
        torch.testing.assert_close(found[name], gram, rtol=1e-4, atol=1e-6)


def test_a_sketched_base_trained_on_a_device_is_the_one_trained_on_the_cpu(
    sketched_base: Path, tiny_base: Path, tmp_path: Path
) -> None:
    ids = torch.randint(3, 390, (10, 32), generator=torch.Generator().manual_seed(3))
    here = FitJob(sketched_base, tiny_base, tmp_path / "here", tmp_path, dtype=torch.float32)
    plan = FitPlan(steps=2, batch_tokens=128, held_out=2)
    expected = fit_sketched_base(here, plan, ids, QUIET)
    with pretended_gpu() as gpu:
        there = replace(here, out=tmp_path / "there", device=gpu)
        found = fit_sketched_base(there, plan, ids, QUIET)
    assert found.after == pytest.approx(expected.after, rel=1e-3)
