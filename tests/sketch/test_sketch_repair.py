"""A sketched variant is repaired: its codebooks are trained in place, its bytes stay as many."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsugiki.codecs import artifact
from tsugiki.codecs.sketch import CODEC, pack
from tsugiki.codecs.sketch_cells import canonical
from tsugiki.codecs.sketch_retune import SketchChange
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.tune.job import RepairJob, run_repair
from tsugiki.tune.repair import RepairPlan
from tsugiki_kernels.codebooks import IndexMap, looked_up

QUIET = Progress(quiet=True)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sketched(rows: int = 12, groups: int = 2, width: int = 32) -> tuple[Tensor, IndexMap]:
    """A weight [rows, groups * width] of 16 values a stretch, and its map."""
    codes = torch.arange(width).remainder(16).expand(rows, groups, width)
    codes, books = canonical(codes, random(rows, groups, 16, seed=0))
    plain = codes.view(rows, -1).to(torch.uint8)
    packed = plain[:, 0::2] | plain[:, 1::2] << 4
    index = IndexMap((rows, groups * width), 4, groups, packed)
    return looked_up(index, books), index


@pytest.mark.parametrize(("value_bits", "tolerance"), [(16, 2e-3), (8, 0.05), (4, 0.4)])
def test_repair_trains_codebooks_and_keeps_their_bytes(value_bits: int, tolerance: float) -> None:
    base, index = sketched()
    packed = pack(0.1 * random(*index.codebook_shape, seed=1), index, value_bits, "a.weight")
    change, x = SketchChange(packed, base), random(5, base.shape[1], seed=2)
    assert not bool(change(x).any())
    with torch.no_grad():
        change.codebooks += 0.5 * random(*change.codebooks.shape, seed=3)
    again = change.pack()
    assert again.nbytes == packed.nbytes
    before, after = (CODEC.effective(base, p).weight for p in (packed, again))
    wanted = change(x).detach()
    assert float((x @ (after - before).T - wanted).norm() / wanted.norm()) < tolerance


def test_a_repaired_file_is_closer_to_its_fine_tune_and_as_large(
    sketched_base: Path, tuned_copy: Path, distill_data: Path, tmp_path: Path
) -> None:
    projected, out = tmp_path / "projected.safetensors", tmp_path / "repaired.safetensors"
    options = {"bits": 4, "groups": 2, "value_bits": 8}
    compress(CompressJob("sketch", sketched_base, tuned_copy, projected, options), QUIET)
    job = RepairJob(
        projected,
        str(sketched_base),
        tuned_copy,
        distill_data,
        out,
        tmp_path,
        dtype=torch.float32,
    )
    result, header = run_repair(job, RepairPlan(steps=12, batch_tokens=256), QUIET)
    assert result.kl_after < 0.9 * result.kl_before
    before = artifact.read_header(projected)
    assert [(t.name, t.count) for t in header.tensors] == [
        (t.name, t.count) for t in before.tensors
    ]
