"""A fine-tune's change as trains and sparse entries within a number of bytes."""

from pathlib import Path

import pytest

from tsugiki.codecs import artifact
from tsugiki.compress.budget import TooSmall
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress

QUIET = Progress(quiet=True)


def packed(base: Path, tuned: Path, out: Path, max_bytes: int) -> tuple[int, float]:
    """Bytes of the file and its relative error."""
    job = CompressJob("saten", base, tuned, out, {"core_bits": 8}, max_bytes=max_bytes)
    report = compress(job, QUIET)
    assert report.file_bytes == out.stat().st_size == sum(report.sections.values())
    return report.file_bytes, report.relative_error


def test_more_bytes_are_used_and_leave_less_error(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    found = [packed(tiny_base, tiny_tuned, out, limit) for limit in (20_000, 40_000)]
    for (size, _), limit in zip(found, (20_000, 40_000), strict=True):
        assert 0.8 * limit < size <= limit
    assert found[1][1] < found[0][1] < 1.0
    header = artifact.read_header(out)
    settings = {(m.options.get("ranks"), m.options.get("kept")) for m in header.modules.values()}
    assert len(settings) > 2  # matrices differ


def test_a_file_that_cannot_be_so_small_is_refused(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(TooSmall, match="saten cannot make a file this small: 3,000 bytes"):
        packed(tiny_base, tiny_tuned, tmp_path / "a.safetensors", 3_000)
