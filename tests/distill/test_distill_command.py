"""`tsugiki distill`: from directories to a variant that servers and peft understand alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsugiki import cli
from tsugiki.codecs import artifact
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.progress import Progress
from tsugiki.distill import job as job_module
from tsugiki.distill.job import DistillJob, DistillPlan, run_distill
from tsugiki.distill.lora_student import LoraSettings
from tsugiki.distill.prune import prune
from tsugiki.distill.trainer import TrainingPlan
from tsugiki.errors import ConfigError, InvalidRequest

QUIET = Progress(quiet=True)
PLAN = DistillPlan(
    TrainingPlan(steps=30), LoraSettings(rank=4), learning_rate=5e-3, alpha=1.0, batch_tokens=192
)


@pytest.fixture(scope="module")
def student(deep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher without two of its six layers."""
    out = tmp_path_factory.mktemp("student") / "pruned"
    prune(deep_base, 4, out, None, QUIET)
    return out


def asked(teacher: Path, student: Path, data: Path, folder: Path) -> DistillJob:
    out = folder / "variant.safetensors"
    return DistillJob(teacher, student, data, out, folder, dtype=torch.float32)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(torch.arange(3, 40)[None]).logits[0]
    return found


def test_the_variant_the_adapter_and_the_merged_checkpoint_are_one_model(
    deep_base: Path, student: Path, distill_data: Path, tmp_path: Path
) -> None:
    job = replace(
        asked(deep_base, student, distill_data, tmp_path),
        merge=tmp_path / "merged",
        adapter=tmp_path / "adapter",
    )
    result = run_distill(job, PLAN, QUIET)
    assert result.after["kl"] < 0.9 * result.before["kl"]
    assert result.header.provenance["distilled"]["alpha"] == 1.0
    ours = logits(AutoModelForCausalLM.from_pretrained(job.merge, dtype=torch.float32))
    adapted = PeftModel.from_pretrained(load_model(student), tmp_path / "adapter")
    torch.testing.assert_close(ours, logits(adapted), rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(ours, logits(merged), rtol=1e-5, atol=1e-5)
    assert float((ours - logits(load_model(student))).abs().max()) > 0.1
    assert not job.state.exists()


@pytest.mark.parametrize("cached", [False, True])
def test_an_interrupted_run_writes_the_file_of_an_uninterrupted_one(
    deep_base: Path,
    student: Path,
    distill_data: Path,
    tmp_path: Path,
    cached: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = replace(PLAN, training=TrainingPlan(steps=4))
    folders = [tmp_path / name for name in ("whole", "resumed")]
    jobs = []
    for folder in folders:
        folder.mkdir()
        job = asked(deep_base, student, distill_data, folder)
        cache = folder / "teacher" if cached else None
        jobs.append(replace(job, teacher_cache=cache, checkpoint_every=2))
    run_distill(jobs[0], plan, QUIET)
    with monkeypatch.context() as broken:
        broken.setattr(job_module, "_write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_distill(jobs[1], plan, QUIET)
    assert jobs[1].state.exists()
    assert not jobs[1].out.exists()
    with pytest.raises(ConfigError, match=r"alpha 1\.0, this one has 0\.9"):
        run_distill(jobs[1], replace(plan, alpha=0.9), QUIET)
    run_distill(jobs[1], plan, QUIET)
    assert jobs[1].out.read_bytes() == jobs[0].out.read_bytes()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_command_writes_a_variant_and_a_log(
    deep_base: Path,
    student: Path,
    distill_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))
    out, log = tmp_path / "v.safetensors", tmp_path / "log.jsonl"
    words = ["distill", "--teacher", str(deep_base), "--student", str(student)]
    words += ["--data", str(distill_data), "--out", str(out), "--log", str(log)]
    words += ["--steps", "2", "--rank", "2", "--targets", "q_proj,down_proj", "--rslora"]
    words += ["--kl", "reverse", "--alpha", "1", "--gradient-checkpointing", "--dtype", "float32"]
    assert cli.main([*words, "--teacher-cache", str(tmp_path / "teacher")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{out}: {out.stat().st_size} bytes, sha256:")
    assert "kl per answer token, held out:" in shown
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]
    header = artifact.read_header(out)
    assert {name.split(".")[-2] for name in header.modules} == {"q_proj", "down_proj"}
    assert cli.main(["prune", "--base", str(deep_base), "--layers", "9", "--out", "x"]) == 1
    assert "--layers is 9; the base has 6" in capsys.readouterr().err


def test_nobody_is_asked_where_only_answers_count(
    deep_base: Path, student: Path, distill_data: Path, tmp_path: Path
) -> None:
    job = replace(
        asked(deep_base, student, distill_data, tmp_path), teacher_cache=tmp_path / "cache"
    )
    plan = replace(PLAN, training=TrainingPlan(steps=1), alpha=0.0)
    assert set(run_distill(job, plan, QUIET).after) == {"ce"}
    assert not (tmp_path / "cache").exists()


def test_a_teacher_of_another_tokenizer_is_refused_by_the_first_difference(
    deep_base: Path, student: Path, distill_data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "teacher"
    load_model(deep_base).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(deep_base)
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(InvalidRequest, match=r"must share one tokenizer.*<\|extra\|>"):
        run_distill(asked(other, student, distill_data, tmp_path), PLAN, QUIET)


def test_what_makes_no_sense_is_refused_by_name(
    deep_base: Path, student: Path, distill_data: Path, tmp_path: Path
) -> None:
    job = asked(deep_base, student, distill_data, tmp_path)
    with pytest.raises(ConfigError, match=r"--alpha is 1\.5; it must be from 0 to 1"):
        replace(PLAN, alpha=1.5)
    with pytest.raises(ConfigError, match="--temperature is 0; it must be above 0"):
        replace(PLAN, temperature=0)
    with pytest.raises(ConfigError, match="--rank is 0"):
        LoraSettings(rank=0)
    with pytest.raises(ConfigError, match="--targets nowhere"):
        run_distill(job, replace(PLAN, lora=LoraSettings(4, targets=("nowhere",))), QUIET)
    with pytest.raises(ConfigError, match="--top-k is 512; it must be from 1 to 511"):
        run_distill(job, replace(PLAN, top_k=512), QUIET)
    with pytest.raises(ConfigError, match=r"--merge .* exists already"):
        replace(job, merge=tmp_path)
