"""Fine-tunes of tiny bases, made by editing their files, and the walk through compress and back."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tsugiki.compress.decompress import decompress
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.report import Report

WEIGHTS = "model.safetensors"
NEARLY_LOSSLESS = {"alpha": 1, "bits": 8, "group_size": 1}
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Walk:
    """Compresses and decompresses within one temporary directory."""

    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "variant.safetensors"

    def compress(self, base: Path, tuned: Path, codec: str = "deltadq", **job: Any) -> Report:
        options = job.pop("options", NEARLY_LOSSLESS if codec == "deltadq" else {})
        asked = CompressJob(codec, base, tuned, self.file, options=options, **job)
        return compress(asked, Progress(quiet=True))

    def decompress(self, base: Path, dtype: torch.dtype = torch.float32) -> Path:
        out = self.directory / f"checkpoint-{dtype}"
        decompress(open_variant(self.file, str(base), self.directory), out, dtype, PROGRESS)
        return out

    def there_and_back(self, base: Path, tuned: Path, **job: Any) -> Path:
        self.compress(base, tuned, **job)
        return self.decompress(base)


PROGRESS = Progress(quiet=True)


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return Walk(tmp_path)


@pytest.fixture
def cache_dir(tmp_path: Path, tsugiki_cache: Path) -> Path:
    """A cache of this test alone, but for the compiled kernels."""
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / "kernels").symlink_to(tsugiki_cache / "kernels")
    return directory


Tune = Callable[..., Path]


@pytest.fixture(scope="session")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Tune:
    """`tune(base, change, config={})` -> a copy of a base; `change` edits its tensors in place."""

    def make(
        base: Path,
        change: Callable[[Tensors], None] = lambda tensors: None,
        config: Mapping[str, Any] | None = None,
    ) -> Path:
        directory = tmp_path_factory.mktemp("tuned")
        shutil.copytree(base, directory, dirs_exist_ok=True)
        tensors = load_file(base / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        edit_json(directory / "config.json", config or {})
        return directory

    return make


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def nudge() -> Callable[..., None]:
    """`nudge(tensors, name, rows=None)`: move one tensor, or some of its rows, a little."""

    def move(tensors: Tensors, name: str, rows: Any = slice(None)) -> None:
        generator = torch.Generator().manual_seed(len(name))
        noise = torch.randn(tensors[name].shape, generator=generator)
        tensors[name][rows] += 0.02 * noise[rows]

    return move


@pytest.fixture(scope="session")
def logits() -> Callable[[Path], Tensor]:
    """`logits(directory)`: float32 logits of plain transformers on a fixed prompt, [16, vocab]."""

    def run(directory: Path) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        ids = torch.arange(3, 19)[None]
        with torch.inference_mode():
            return model(ids).logits[0]

    return run


@pytest.fixture(scope="session")
def dialogues_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short dialogues in both line formats."""
    lines = [
        {"prompt": "What is the capital of France?", "answer": "Paris."},
        {"prompt": "How many apples does Sam have?", "answer": "#### 42"},
        {
            "messages": [
                {"role": "user", "content": "My card has not arrived yet"},
                {"role": "assistant", "content": "It will be delivered."},
            ]
        },
    ]
    path = tmp_path_factory.mktemp("data") / "dialogues.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines * 2) + "\n")
    return path
