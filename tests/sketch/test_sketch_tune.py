"""`tune sketch`: the gradient is exact, runs resume to the bit, what is written is served."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.cli import main
from tsugiki.codecs.sketch_retune import LookedUpProduct
from tsugiki.compress.decompress import decompress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.distill.trainer import TrainingPlan, schedule
from tsugiki.errors import ConfigError
from tsugiki.tune.compressed import Tuned, TuneJob
from tsugiki.tune.sketch import SketchTunePlan, tune_sketch

QUIET = Progress(quiet=True)
PLAN = SketchTunePlan(
    TrainingPlan(6, betas=(0.9, 0.999), decay="linear"),
    learning_rate=3e-3,
    batch_tokens=256,
    held_out=2,
)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_gradient_is_that_of_a_dense_gather(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    codes = torch.randint(0, 16, (12, groups, 64 // groups), generator=generator)
    x = torch.randn(3, 5, 64, generator=generator).double().requires_grad_()
    books = torch.randn(12, groups, 16, generator=generator).double().requires_grad_()
    wanted = torch.randn(3, 5, 12, generator=generator).double()

    ours = LookedUpProduct.apply(x, books, codes.to(torch.uint8))
    found = torch.autograd.grad((ours * wanted).sum(), (x, books))
    plain = x @ books.gather(2, codes).flatten(1).T
    expected = torch.autograd.grad((plain * wanted).sum(), (x, books))
    assert torch.allclose(ours, plain, rtol=0, atol=1e-12)
    for mine, autograd in zip(found, expected, strict=True):
        assert torch.allclose(mine, autograd, rtol=1e-10, atol=1e-10)


def test_the_papers_schedule_rises_and_falls_linearly() -> None:
    plan = TrainingPlan(10, warmup=0.2, decay="linear")
    assert [schedule(step, plan) for step in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    pairs = [("What is the capital of France?", "Paris."), ("How many apples?", "#### 42")] * 6
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(lines) + "\n")
    return path


Tune = Callable[..., Tuned]


@pytest.fixture
def tune(sketched_base: Path, data: Path, tmp_path: Path) -> Tune:
    def run(name: str, progress: Progress = QUIET, **options: Any) -> Tuned:
        out = tmp_path / f"{name}.safetensors"
        job = TuneJob(sketched_base, data, out, tmp_path, dtype=torch.float32)
        return tune_sketch(replace(job, **options), PLAN, progress)

    return run


def test_a_tuned_variant_learns_and_is_served_as_transformers_runs_it(
    tune: Tune,
    sketched_base: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    tuned = tune("tuned")
    assert tuned.after < 0.8 * tuned.before
    assert tuned.header.role == "parameters"
    # 2 layers of q, k, v, o, gate, up, down: 448 + 64 rows of 2 codebooks of 16
    assert tuned.trained_parameters == 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64) * 2 * 16
    file, checkpoint = tmp_path / "tuned.safetensors", tmp_path / "decompressed"
    decompress(open_variant(file, str(sketched_base), tmp_path), checkpoint, torch.float32, QUIET)
    assert torch.allclose(served(sketched_base, file), oracle(checkpoint), atol=1e-4)


class Interrupted(Exception):
    """As if somebody had pressed Ctrl-C."""


class Interrupting(Progress):
    """Stops the training after four steps."""

    def track(self, items: Iterable[Any], text: str, total: int | None = None) -> Iterator[Any]:
        yield from islice(items, 4)
        raise Interrupted


def test_an_interrupted_run_ends_in_the_same_bits(tune: Tune, tmp_path: Path) -> None:
    whole = tune("whole", checkpoint_every=2)
    with pytest.raises(Interrupted):
        tune("resumed", progress=Interrupting(quiet=True), checkpoint_every=2)
    assert (tmp_path / "resumed.safetensors.training").is_file()
    assert tune("resumed", checkpoint_every=2).header.digest == whole.header.digest
    assert not (tmp_path / "resumed.safetensors.training").exists()


def test_on_another_device_the_same_is_learned(
    tune: Tune, another_device: AbstractContextManager[torch.device]
) -> None:
    here = tune("here")
    with another_device as gpu:
        there = tune("there", device=gpu)
    assert there.after == pytest.approx(here.after, rel=1e-3)
    assert there.header.file_bytes == here.header.file_bytes


def test_checkpointing_changes_memory_and_no_loss(tune: Tune) -> None:
    plain = tune("plain")
    checkpointed = tune("checkpointed", gradient_checkpointing=True)
    assert checkpointed.after == pytest.approx(plain.after, rel=1e-4)


def test_a_dense_base_cannot_be_tuned_so(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    job = TuneJob(tiny_base, data, tmp_path / "x.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="compress-base sketch"):
        tune_sketch(job, PLAN, QUIET)
    with pytest.raises(ConfigError, match="does not exist"):
        TuneJob(tiny_base, data, tmp_path / "no" / "x.safetensors", tmp_path)


def test_the_command_writes_a_variant(
    sketched_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    command = ["tune", "sketch", "--base", str(sketched_base), "--data", str(data)]
    flags = ["--out", str(out), "--steps", "1", "--held-out", "2", "--value-bits", "4"]
    assert main([*command, *flags]) == 0
    assert "trained parameters" in capsys.readouterr().out
    assert main([*command, *flags, "--learning-rate", "0"]) == 1
