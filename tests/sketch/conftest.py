"""A tiny base, sketched, and dense fine-tunes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsugiki.codecs import artifact
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.compress.checkpoint_writer import write_text_side, write_weights
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.job import SketchBaseJob, sketch_base
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import load_base
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.reference import ReferenceBackend

QUIET = Progress(quiet=True)


@pytest.fixture(scope="session")
def calibration_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return path


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
    return _written(sketched_base, tmp_path_factory.mktemp("dense"), noise=0.0)


@pytest.fixture(scope="session")
def tuned_copy(sketched_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense fine-tune of the sketched base: every linear and norm moved a little."""
    return _written(sketched_base, tmp_path_factory.mktemp("dense-tuned"), noise=0.02)


def _written(base: Path, out: Path, noise: float) -> Path:
    checkpoint = open_checkpoint(base)
    generator = torch.Generator().manual_seed(5)

    def moved(name: str) -> torch.Tensor:
        tensor = checkpoint.tensor(name).float()
        if "embed" in name:
            return tensor
        return tensor + noise * torch.randn(tensor.shape, generator=generator)

    config = {key: value for key, value in checkpoint.config.items() if key != "tsugiki"}
    write_weights(out, config, ((n, moved(n)) for n in checkpoint.names()), torch.float32)
    write_text_side(out, base, None)
    return out


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path], torch.Tensor]:
    """`oracle(directory)`: float32 logits of plain transformers on ids 3 .. 18, [16, vocab]."""

    def run(directory: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.arange(3, 19)[None]).logits[0]
        return logits

    return run


Served = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def served() -> Served:
    """`served(base, file=None, kernels=reference)`: float32 logits of ids 3 .. 18, [16, vocab]."""

    def run(directory: Path, file: Path | None = None, kernels: Any = None) -> torch.Tensor:
        kernels = kernels or ReferenceBackend()
        base = load_base(directory, dtype=torch.float32, kernels=kernels)
        place = Destination(
            base.layout, base.vector, torch.float32, kernels, MaskCache(), index_of=base.index_of
        )
        variant = None if file is None else stage_variant(artifact.read(file), place)
        rows = torch.arange(16)
        where = AttentionBatch(
            query_start=torch.tensor([0, 16], dtype=torch.int32),
            context=torch.tensor([16], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            slots=rows,
            block_size=16,
        )
        batch = Batch(rows + 3, rows, (Segment(variant, 0, 16, 16),), where, rows)
        cache = allocate_kv_cache(base.architecture, 1, 16, torch.float32)
        return base.decoder.forward(batch, cache).clone()

    return run
