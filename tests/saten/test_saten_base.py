"""A base of trains and sparse entries: made, read, served, refused."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tsugiki.cli import main
from tsugiki.compress.checkpoint_writer import write_text_side, write_weights
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.saten_job import SatenBaseJob, saten_base
from tsugiki.errors import CompressionRefused, ConfigError, UnsupportedModel
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.checkpoint import EMBEDDING, open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import load_base
from tsugiki_kernels.operands import AttentionBatch

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
QUIET = Progress(quiet=True)
T = TypeVar("T")


def served(directory: Path) -> Tensor:
    """float32 logits of ids 3 .. 18 as one chunk, [16, vocab]."""
    base = load_base(directory, dtype=torch.float32)
    rows = torch.arange(16)
    where = AttentionBatch(
        query_start=torch.tensor([0, 16], dtype=torch.int32),
        context=torch.tensor([16], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        slots=rows,
        block_size=16,
    )
    batch = Batch(rows + 3, rows, (Segment(None, 0, 16, 16),), where, rows)
    cache = allocate_kv_cache(base.architecture, 1, 16, torch.float32)
    with torch.inference_mode():
        return base.decoder.forward(batch, cache).clone()


def test_the_bits_that_were_asked_for_are_kept_to(saten_directory: Path, tiny_base: Path) -> None:
    made, plain = open_checkpoint(saten_directory), open_checkpoint(tiny_base)
    assert made.names() == plain.names()
    assert base_fingerprint(made, None) != base_fingerprint(plain, None)
    stored = load_file(saten_directory / "model.safetensors")
    packed = [n for n in plain.names() if made.is_compressed(n)]
    weights = sum(made.tensor(name).numel() for name in packed)
    parts = (t for n, t in stored.items() if not n.endswith(".saten") and n not in plain)
    assert EMBEDDING in packed
    assert 0.85 * 6 < 8 * sum(t.nbytes for t in parts) / weights < 1.1 * 6
    for name in packed:
        assert made.shape(name) == plain.shape(name)
        weight = plain.tensor(name).float()
        assert float((made.tensor(name) - weight).norm() / weight.norm()) < 0.3


def test_it_is_served_as_transformers_runs_it(
    saten_directory: Path, tmp_path: Path, tiny_base: Path
) -> None:
    checkpoint = open_checkpoint(saten_directory)
    config = {key: value for key, value in checkpoint.config.items() if key != "tsugiki"}
    tensors = ((name, checkpoint.tensor(name).float()) for name in checkpoint.names())
    write_weights(tmp_path, config, tensors, torch.float32)
    write_text_side(tmp_path, tiny_base, None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.arange(3, 19)[None]).logits[0]
    assert torch.allclose(served(saten_directory), expected, atol=1e-4)


class Interrupted(Progress):
    """Four matrices are weighed, then somebody presses Ctrl-C."""

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """See Progress."""
        for place, item in enumerate(super().track(items, label, total)):
            if place == 4:
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_run_takes_up_the_menus_that_it_kept(
    saten_directory: Path, tiny_base: Path, tmp_path: Path
) -> None:
    job = SatenBaseJob(tiny_base, tmp_path / "out", 6.0)
    with pytest.raises(KeyboardInterrupt):
        saten_base(job, Interrupted(quiet=True))
    assert not job.out.exists()
    assert len((job.partial / "menus.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match="another"):
        saten_base(SatenBaseJob(tiny_base, job.out, 6.0, {"core_bits": 4}), QUIET)
    saten_base(job, QUIET)
    assert not job.partial.exists()
    files = [path / "model.safetensors" for path in (job.out, saten_directory)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_is_refused_by_name(
    saten_directory: Path, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(CompressionRefused, match="compressed already"):
        saten_base(SatenBaseJob(saten_directory, tmp_path / "x", 4.0), QUIET)
    with pytest.raises(ConfigError, match="above 0"):
        saten_base(SatenBaseJob(tiny_base, tmp_path / "x", 0.0), QUIET)
    foreign = ["compress-base", "saten", "--base", str(tiny_base), "--out", str(tmp_path / "x")]
    assert main([*foreign, "--groups", "2"]) == 1
    tensors = load_file(saten_directory / "model.safetensors")
    form = json.loads(bytes(tensors[f"{Q_PROJ}.saten"].tolist()))
    form["options"]["kept"] += 1
    changed = torch.tensor(list(json.dumps(form).encode()), dtype=torch.uint8)
    shutil.copytree(saten_directory, tmp_path / "damaged")
    save_file({**tensors, f"{Q_PROJ}.saten": changed}, tmp_path / "damaged/model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"q_proj.*compress the base again"):
        load_base(tmp_path / "damaged")
