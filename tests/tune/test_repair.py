"""A repaired variant is closer to its fine-tune, takes as many bytes, and is what was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tsugiki.codecs import artifact
from tsugiki.commands import repair as command
from tsugiki.compress.decompress import decompress
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model, logits_at_answers
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.distill.batches import Batch
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.teacher import LiveTeacher, View
from tsugiki.distill.trainer import Record, mean_losses
from tsugiki.errors import ConfigError, InvalidRequest, Unsupported
from tsugiki.tune.job import RepairJob, run_repair
from tsugiki.tune.repair import RepairPlan, repair
from tsugiki.tune.student import Student, make_student

QUIET = Progress(quiet=True)
PLAN = RepairPlan(steps=40, batch_tokens=256, seed=3)


@pytest.fixture(scope="module")
def data(distill_data: Path) -> Path:
    """Twenty short dialogues."""
    return distill_data


@pytest.fixture(scope="module")
def variant(
    tiny_base: Path, tiny_tuned: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A coarse variant file with a bias correction."""
    out = tmp_path_factory.mktemp("variant") / "coarse.safetensors"
    options = {"alpha": 4, "bits": 1, "group_size": 4}
    compress(CompressJob("deltadq", tiny_base, tiny_tuned, out, options, calibration=data), QUIET)
    return out


def job(variant: Path, base: Path, tuned: Path, data: Path, out: Path) -> RepairJob:
    return RepairJob(variant, str(base), tuned, data, out, out.parent, dtype=torch.float32)


@pytest.fixture(scope="module")
def student(variant: Path, tiny_base: Path) -> Student:
    opened = open_variant(variant, str(tiny_base), variant.parent)
    return make_student(opened, torch.float32)


def dialogues() -> list[Dialogue]:
    generator = torch.Generator().manual_seed(1)
    return [
        Dialogue(tuple(torch.randint(3, 390, (n,), generator=generator).tolist()), n // 2, True)
        for n in (9, 14, 11, 20, 16, 12, 18, 10)
    ]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.arange(3, 40)[None]).logits[0]
    return found


def mean_kl(student: Any, teacher: Any) -> float:
    objective = NeoObjective(student, LiveTeacher(teacher, View(512)), Mixture(1.0))
    return mean_losses(objective, [Batch((dialogue,)) for dialogue in dialogues()])["kl"]


def test_the_student_starts_as_the_file_is(
    student: Student, variant: Path, tiny_base: Path, tmp_path: Path
) -> None:
    decompress(
        open_variant(variant, str(tiny_base), tmp_path), tmp_path / "out", torch.float32, QUIET
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(student.model), logits(plain), atol=1e-5, rtol=1e-5)


def test_only_factors_biases_and_norms_are_trained(student: Student) -> None:
    trained = {id(p) for group in student.kinds().values() for p in group.values()}
    live = {id(p) for p in student.model.parameters() if p.requires_grad}
    assert trained == live
    assert len(student.norms) == 5


def test_the_loss_is_the_divergence_at_the_answer_positions(
    student: Student, tiny_tuned: Path
) -> None:
    teacher = load_model(tiny_tuned)
    total = tokens = 0.0
    for dialogue in dialogues():
        ids = torch.tensor([dialogue.ids])
        # the logits at position p predict token p + 1
        rows = slice(dialogue.start - 1, len(dialogue.ids) - 1)
        with torch.no_grad():
            p = teacher(ids).logits[0, rows].double().log_softmax(-1)
            q = student.model(ids).logits[0, rows].double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        tokens += len(p)
    found = mean_kl(student.model, teacher)
    assert found == pytest.approx(total / tokens, rel=1e-4)


def test_a_repaired_file_is_closer_to_the_fine_tune_and_as_large(
    variant: Path, tiny_base: Path, tiny_tuned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "repaired.safetensors"
    result, header = run_repair(job(variant, tiny_base, tiny_tuned, data, out), PLAN, QUIET)
    before = artifact.read_header(variant)
    assert result.kl_after < 0.95 * result.kl_before
    assert [(b.name, b.count) for b in header.tensors] == [
        (b.name, b.count) for b in before.tensors
    ]
    assert header.provenance["repaired"]["from"] == before.digest
    # what was trained is what was stored, up to the rounding of steps, biases and norms
    opened = open_variant(out, str(tiny_base), tmp_path)
    stored = make_student(opened, torch.float32)
    teacher = load_model(tiny_tuned)
    first = open_variant(variant, str(tiny_base), tmp_path)
    unrepaired = make_student(first, torch.float32)
    assert mean_kl(stored.model, teacher) < mean_kl(unrepaired.model, teacher)


def test_a_run_repeats_byte_for_byte(
    variant: Path, tiny_base: Path, tiny_tuned: Path, data: Path, tmp_path: Path
) -> None:
    plan = RepairPlan(steps=3, batch_tokens=128)
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        run_repair(job(variant, tiny_base, tiny_tuned, data, file), plan, QUIET)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_too_little_data_is_refused(student: Student, tiny_tuned: Path) -> None:
    with pytest.raises(InvalidRequest, match="at least 8 dialogues are needed, 3 are given"):
        repair(student, load_model(tiny_tuned), dialogues()[:3], PLAN, QUIET, Record())


def test_a_file_without_trainable_linears_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    model = load_model(tiny_base)
    with torch.no_grad():
        model.model.norm.weight.add_(0.1)
    model.save_pretrained(tmp_path / "tuned")
    out = tmp_path / "norm.safetensors"
    compress(CompressJob("bitdelta", tiny_base, tmp_path / "tuned", out), QUIET)
    opened = open_variant(out, str(tiny_base), tmp_path)
    with pytest.raises(
        Unsupported, match="codecs that can: deltadq, bitdelta, caldera, lora, saten"
    ):
        make_student(opened, torch.float32)


@pytest.mark.parametrize("codec", ["bitdelta", "lora"])
def test_other_codecs_are_repaired_by_the_same_loop(
    tiny_base: Path, tiny_tuned: Path, data: Path, tmp_path: Path, codec: str
) -> None:
    options = {"rank": 4} if codec == "lora" else {}
    coarse, out = tmp_path / "coarse.safetensors", tmp_path / "repaired.safetensors"
    compress(CompressJob(codec, tiny_base, tiny_tuned, coarse, options), QUIET)
    plan = RepairPlan(steps=20, batch_tokens=256)
    result, header = run_repair(job(coarse, tiny_base, tiny_tuned, data, out), plan, QUIET)
    assert result.kl_after < 0.97 * result.kl_before
    before = artifact.read_header(coarse)
    assert sum(b.count for b in header.tensors) == sum(b.count for b in before.tensors)


def test_an_interrupted_repair_writes_the_file_of_an_uninterrupted_one(
    variant: Path,
    tiny_base: Path,
    tiny_tuned: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = RepairPlan(steps=4, batch_tokens=128)
    whole, resumed = (
        replace(job(variant, tiny_base, tiny_tuned, data, tmp_path / name), checkpoint_every=2)
        for name in ("whole.safetensors", "resumed.safetensors")
    )
    run_repair(whole, plan, QUIET)
    with monkeypatch.context() as broken:
        broken.setattr(artifact, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_repair(resumed, plan, QUIET)
    with pytest.raises(ConfigError, match=r"alpha 1\.0, this one has 0\.5"):
        run_repair(resumed, replace(plan, alpha=0.5), QUIET)
    run_repair(resumed, plan, QUIET)
    assert resumed.out.read_bytes() == whole.out.read_bytes()
    assert not resumed.state.exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_command_writes_the_file_and_says_what_it_brought(
    variant: Path,
    tiny_base: Path,
    tiny_tuned: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out.safetensors"
    words = [str(variant), "--base", str(tiny_base), "--teacher", str(tiny_tuned)]
    words += ["--data", str(data), "--out", str(out), "--steps", "2", "--dtype", "float32"]
    assert command.run(parser.parse_args(words)) == 0
    shown = capsys.readouterr().out
    assert artifact.read(out).header.digest in shown
    assert "KL to the fine-tune per answer token" in shown


def test_padding_does_not_reach_the_logits(student: Student) -> None:
    batch = dialogues()
    together = logits_at_answers(student.model, [d.ids for d in batch], [d.start for d in batch])
    alone = [logits_at_answers(student.model, [d.ids], [d.start]) for d in batch]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
