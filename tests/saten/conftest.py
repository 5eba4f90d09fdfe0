"""A tiny base as trains and sparse entries."""

from pathlib import Path

import pytest

from tsugiki.compress.progress import Progress
from tsugiki.compress_base.saten_job import SatenBaseJob, saten_base


@pytest.fixture(scope="session")
def saten_directory(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 bits a weight, the embedding among them."""
    out = tmp_path_factory.mktemp("saten") / "tiny"
    saten_base(SatenBaseJob(tiny_base, out, 6.0), Progress(quiet=True))
    return out
