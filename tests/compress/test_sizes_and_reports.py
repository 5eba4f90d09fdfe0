"""The report counts every byte, and a size that was asked for is met or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki.codecs import artifact
from tsugiki.codecs.deltadq import DEFAULTS
from tsugiki.compress.budget import Template, choose, deltadq_candidates
from tsugiki.compress.report import paper_ratio, render
from tsugiki.errors import CompressionRefused, ConfigError

LINEARS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
NORMS = 5 * 64


def test_sections_sum_to_the_file_and_the_honest_ratio_counts_all_of_it(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    report = walk.compress(tiny_base, tiny_tuned, options={})
    size = walk.file.stat().st_size
    assert report.file_bytes == size == sum(report.sections.values())
    assert report.changed_parameters == LINEARS + NORMS
    assert report.honest_ratio == pytest.approx((LINEARS + NORMS) * 2 / size)
    assert report.model_parameters == LINEARS + NORMS + 512 * 64
    assert report.paper_ratio == 256
    assert report.gain == pytest.approx(1.0, abs=1e-3)
    assert sum(module.nbytes for module in report.modules) < size
    assert "honest ratio" in render(report)


def test_the_report_is_saved_with_every_layer(
    walk: Any, tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    report = walk.compress(tiny_base, tiny_tuned)
    report.write(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["file_bytes"] == report.file_bytes
    assert len(saved["modules"]) == 19
    assert all(module["relative_error"] < 0.02 for module in saved["modules"])


@pytest.mark.parametrize("ratio", [8, 10, 12])
def test_a_target_ratio_is_met_and_not_wasted(
    ratio: float, walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    report = walk.compress(tiny_base, tiny_tuned, options={}, target_ratio=ratio)
    assert ratio <= report.honest_ratio < 1.05 * ratio


def test_more_bytes_buy_a_smaller_error(walk: Any, tiny_base: Path, tiny_tuned: Path) -> None:
    sizes, options = (12_000, 18_000, 30_000), {"bits": 2}
    reports = [
        walk.compress(tiny_base, tiny_tuned, options=options, max_bytes=size) for size in sizes
    ]
    assert all(r.file_bytes <= size for r, size in zip(reports, sizes, strict=True))
    errors = [report.relative_error for report in reports]
    assert errors == sorted(errors, reverse=True)


def test_lora_chooses_its_rank(walk: Any, tiny_base: Path, tiny_tuned: Path) -> None:
    report = walk.compress(tiny_base, tiny_tuned, codec="lora", max_bytes=30_000)
    header = artifact.read_header(walk.file)
    assert report.file_bytes <= 30_000
    assert header.options["rank"] > 1


def test_a_size_asked_for_keeps_the_options_asked_for(
    walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    walk.compress(tiny_base, tiny_tuned, options={"bits": 4}, max_bytes=20_000)
    assert artifact.read_header(walk.file).options["bits"] == 4


@pytest.mark.parametrize(
    ("codec", "limit", "said"),
    [
        ("deltadq", {"max_bytes": 3_000}, "cannot make a file this small"),
        ("lora", {"max_bytes": 6_000}, "at rank 1"),
        ("bitdelta", {"target_ratio": 100}, "have no setting"),
    ],
)
def test_a_size_that_cannot_be_met_is_refused_with_the_numbers(
    codec: str, limit: dict[str, Any], said: str, walk: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    with pytest.raises(CompressionRefused, match=said):
        walk.compress(tiny_base, tiny_tuned, codec=codec, options={}, **limit)
    assert not walk.file.exists()


def test_both_limits_at_once_are_refused(walk: Any, tiny_base: Path, tiny_tuned: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        walk.compress(tiny_base, tiny_tuned, max_bytes=1000, target_ratio=2)


def test_candidates_come_best_first_and_prefer_more_survivors_of_few_bits() -> None:
    candidates = list(deltadq_candidates({}))
    sixteenth = [c for c in candidates if c["alpha"] / c["bits"] == 16]
    assert sixteenth[0]["bits"] in (1, 2)
    assert candidates[0]["alpha"] == 1


@pytest.mark.parametrize("ratio", [11, 16, 23, 32, 50, 75, 100, 150, 200, 400])
def test_of_every_size_there_is_a_candidate_that_wastes_little_of_it(ratio: float) -> None:
    shape = (576, 1536)
    options = {**DEFAULTS, "rows_per_step": 16, "gain": 0.1, "zero": 0.5, "bias_scale": 0.1}
    kinds = [Template("deltadq", shape, options, 10)]
    limit = int(10 * shape[0] * shape[1] * 2 / ratio)
    chosen = choose("deltadq", kinds, limit, {}, least=int(0.96 * limit))
    assert 0.96 * limit <= kinds[0].nbytes(chosen) <= limit
    asked = choose("deltadq", kinds, limit, {"group_size": 64}, least=int(0.96 * limit))
    assert asked["group_size"] == 64
    assert kinds[0].nbytes(asked) <= limit


def test_a_size_that_no_candidate_fills_is_met_by_the_best_that_is_smaller() -> None:
    kinds = [Template("lora", (64, 64), {"rank": 8, "scale": 1.0, "dtype": "float16"}, 1)]
    few = kinds[0].nbytes({"rank": 2})
    assert choose("lora", kinds, few + 5, {}, least=few + 3) == {"rank": 2}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": 8, "bits": 4, "parts": 8}, 128.0),
        ({"alpha": 32, "bits": 4, "parts": 8}, 512.0),
        ({"alpha": 16, "bits": 1, "parts": 1}, 256.0),
        ({"alpha": 8, "bits": 3, "parts": 8}, None),
    ],
)
def test_the_paper_counts_residual_bits_only(
    options: dict[str, Any], expected: float | None
) -> None:
    assert paper_ratio("deltadq", options) == expected
    assert paper_ratio("lora", options) is None


def test_tiny_changes_of_norms_survive(walk: Any, tiny_base: Path, tune: Any) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] += 3e-7 * torch.randn(64)

    torch.manual_seed(1)
    report = walk.compress(tiny_base, tune(tiny_base, change))
    assert report.modules[0].relative_error < 0.002
