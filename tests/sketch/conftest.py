"""A tiny base, sketched, and dense fine-tunes of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compressed_base import written_dense
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.job import SketchBaseJob, sketch_base
from tsugiki.model.sketched import SketchSettings

QUIET = Progress(quiet=True)


Sketch = Callable[..., Path]


@pytest.fixture(scope="session")
def sketch(
    tiny_base: Path, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Sketch:
    """`sketch(bits=4, groups=2, base=tiny_base)` -> a sketched base directory."""

    def make(bits: int = 4, groups: int = 2, base: Path = tiny_base) -> Path:
        out = tmp_path_factory.mktemp("sketched") / f"tiny-{bits}-{groups}"
        settings = SketchSettings(bits, groups)
        sketch_base(
            SketchBaseJob(base, out, settings, calibration_text, sequences=4, sequence_tokens=64),
            QUIET,
        )
        return out

    return make


@pytest.fixture(scope="session")
def sketched_base(sketch: Sketch) -> Path:
    """4 bits, 2 codebooks a row."""
    return sketch()


@pytest.fixture(scope="session")
def dense_copy(sketched_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sketched base as an ordinary float32 checkpoint."""
    return written_dense(sketched_base, tmp_path_factory.mktemp("dense"), noise=0.0)


@pytest.fixture(scope="session")
def tuned_copy(sketched_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense fine-tune of the sketched base: every linear and norm moved a little."""
    return written_dense(sketched_base, tmp_path_factory.mktemp("dense-tuned"), noise=0.02)
