"""`tune-base`: a sketched base with trained codebooks is one again, nearer to its original."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsugiki.cli import main
from tsugiki.compress.job import open_base
from tsugiki.compress.progress import Progress
from tsugiki.errors import ConfigError, InvalidRequest
from tsugiki.model.sketched import CODEBOOKS, INDEX
from tsugiki.tune.sketch_base import FitJob, FitPlan, fit_sketched_base

QUIET = Progress(quiet=True)
PLAN = FitPlan(steps=30, learning_rate=1e-3, batch_tokens=256)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 390, (16, 32), generator=torch.Generator().manual_seed(3))


def job(sketched: Path, original: Path, out: Path) -> FitJob:
    return FitJob(sketched, original, out, out.parent, dtype=torch.float32)


def test_a_fitted_base_is_nearer_its_original_and_takes_as_many_bytes(
    sketch: Callable[..., Path], tiny_base: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    coarse = sketch(bits=2, groups=1)
    out = tmp_path / "fitted"
    fitted = fit_sketched_base(job(coarse, tiny_base, out), PLAN, ids, QUIET)
    assert fitted.after < fitted.before
    assert not (tmp_path / "fitted.training").exists()
    before, after = open_base(coarse).checkpoint, open_base(out).checkpoint
    told = after.config["tsugiki"].pop("tuned")
    assert told["steps"] == 30
    assert told["after"] == fitted.after
    assert after.config == before.config
    assert after.stored_names() == before.stored_names()
    changed = 0
    for name in filter(before.is_compressed, before.names()):
        old, new = before.reader(name), after.reader(name)
        assert new(INDEX).shape == old(INDEX).shape
        assert new(CODEBOOKS).dtype == torch.float16
        changed += int(not torch.equal(new(CODEBOOKS), old(CODEBOOKS)))
        after.tensor(name)  # codebooks ascend, or it is refused
    assert changed == 14
    assert torch.equal(before.tensor("model.norm.weight"), after.tensor("model.norm.weight"))
    # what was trained is what is stored, up to the rounding to float16
    once_more = replace(PLAN, steps=1)
    again = fit_sketched_base(job(out, tiny_base, tmp_path / "again"), once_more, ids, QUIET)
    assert again.before == pytest.approx(fitted.after, rel=0.02)


def test_what_cannot_be_fitted_is_refused(
    sketched_base: Path, tiny_base: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    with pytest.raises(ConfigError, match="not sketched"):
        fit_sketched_base(job(tiny_base, tiny_base, tmp_path / "x"), PLAN, ids, QUIET)
    with pytest.raises(InvalidRequest, match="at least 8"):
        fit_sketched_base(job(sketched_base, tiny_base, tmp_path / "x"), PLAN, ids[:4], QUIET)


def test_the_command_writes_a_base(
    sketched_base: Path,
    tiny_base: Path,
    calibration_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "fitted"
    command = ["tune-base", "--base", str(sketched_base), "--teacher", str(tiny_base)]
    command += ["--data", str(calibration_text), "--sequence-tokens", "32", "--out", str(out)]
    assert main([*command, "--steps", "1", "--batch-tokens", "64", "--held-out", "2"]) == 0
    assert "KL per token" in capsys.readouterr().out
    assert open_base(out).checkpoint.form == open_base(sketched_base).checkpoint.form
    assert main([*command, "--steps", "0"]) == 1
