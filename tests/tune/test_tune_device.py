"""Repair, calibration and scores elsewhere than on the CPU: everything follows the device."""

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.pretended_gpu import pretended_gpu
from tsugiki.compress.calibration import calibrate
from tsugiki.compress.dialogues import read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reference import Reference
from tsugiki.compress.sensitivity import noise_costs
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.tune.job import RepairJob, run_repair
from tsugiki.tune.repair import RepairPlan

QUIET = Progress(quiet=True)
FILES: dict[str, dict[str, Any]] = {
    "deltadq": {"alpha": 4, "bits": 1, "group_size": 4},
    "lora": {"rank": 2},
    "saten": {"rank": 2, "density": 0.1},
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    here = torch.ones(3)
    with pretended_gpu() as gpu:
        there = here.to(gpu)
        assert (there + 1).tolist() == [2.0] * 3
        with pytest.raises(RuntimeError, match="one is on the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="draws on the CPU"):
            torch.rand(3, generator=torch.Generator(), device=gpu)


@pytest.mark.parametrize("codec", FILES)
def test_a_file_repaired_on_a_device_is_the_one_repaired_on_the_cpu(
    tiny_base: Path,
    tiny_tuned: Path,
    distill_data: Path,
    tmp_path: Path,
    codec: str,
    another_device: AbstractContextManager[torch.device],
) -> None:
    coarse = tmp_path / "coarse.safetensors"
    calibration = distill_data if codec == "deltadq" else None
    job = CompressJob(codec, tiny_base, tiny_tuned, coarse, FILES[codec], calibration=calibration)
    compress(job, QUIET)
    plan = RepairPlan(steps=1, batch_tokens=512, held_out=2)
    here = RepairJob(
        coarse,
        str(tiny_base),
        tiny_tuned,
        distill_data,
        tmp_path / "here",
        tmp_path,
        dtype=torch.float32,
    )
    first, _ = run_repair(here, plan, QUIET)
    with another_device as gpu:
        there = replace(here, out=tmp_path / "there", device=gpu)
        second, _ = run_repair(there, plan, QUIET)
    assert second.kl_after == pytest.approx(first.kl_after, rel=1e-3)
    expected, found = load_file(here.out), load_file(there.out)
    for name, tensor in expected.items():
        different = (found[name].float() - tensor.float()).abs() > 1e-3
        assert float(different.float().mean()) < 0.02, name  # a rounding may fall the other way


def test_statistics_costs_and_divergences_of_a_device_are_those_of_the_cpu(
    tiny_base: Path,
    tiny_tuned: Path,
    distill_data: Path,
    another_device: AbstractContextManager[torch.device],
) -> None:
    dialogues = list(read_dialogues(distill_data, load_tokenizer(tiny_tuned), limit=4))

    def measured(device: torch.device) -> list[float]:
        tuned, base = (load_model(path, device=device) for path in (tiny_tuned, tiny_base))
        found = calibrate(tuned, dialogues, [Q_PROJ], frozenset({Q_PROJ}), grams=True)
        before = load_model(tiny_base).get_parameter(Q_PROJ)
        costs = noise_costs(tuned, dialogues, [Q_PROJ], lambda _: before)
        compared = Reference.of(tuned, dialogues, QUIET).compare(base)
        gram = found.stats[Q_PROJ].gram
        assert gram is not None
        sums = [found.stats[Q_PROJ].mean.sum(), gram.sum(), found.samples[Q_PROJ].sum()]
        assert {value.device.type for value in sums} == {"cpu"}
        return [
            *map(float, sums),
            costs[Q_PROJ],
            compared.kl.value,
            compared.perplexity["tuned"].value,
        ]

    expected = measured(torch.device("cpu"))
    with another_device as gpu:
        found = measured(gpu)
    assert found == pytest.approx(expected, rel=1e-3)
