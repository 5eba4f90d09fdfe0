"""A tiny base on a lattice, and dense fine-tunes of it."""

from pathlib import Path

import pytest

from tests.compressed_base import written_dense
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import CalibrationText
from tsugiki.compress_base.caldera import Settings
from tsugiki.compress_base.caldera_job import CalderaBaseJob, caldera_base

QUIET = Progress(quiet=True)


@pytest.fixture(scope="session")
def caldera_directory(
    tiny_base: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """2 bits, factors of rank 4."""
    out = tmp_path_factory.mktemp("caldera") / "tiny"
    text = CalibrationText(calibration_text, sequences=4, sequence_tokens=64)
    settings = Settings(bits=2, rank=4, factor_bits=4, iterations=2)
    caldera_base(CalderaBaseJob(tiny_base, out, settings, text), QUIET)
    return out


@pytest.fixture(scope="session")
def dense_copy(caldera_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That base as an ordinary float32 checkpoint."""
    return written_dense(caldera_directory, tmp_path_factory.mktemp("dense"), noise=0.0)


@pytest.fixture(scope="session")
def tuned_copy(caldera_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense fine-tune of it: every linear and norm moved a little."""
    return written_dense(caldera_directory, tmp_path_factory.mktemp("tuned"), noise=0.05)
