"""What every compressed base takes over from the one it is made of, and sees of it.

Owns: opening the calibration walk, the names of a layer's linears, the files beside config and
weights, what is counted of those written. Does not know: any form.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.layers import LayerWalk
from tsugiki.compress_base.text import sequences
from tsugiki.model.checkpoint import INDEX_FILE
from tsugiki.model.device import CPU
from tsugiki.model.layout import layer_linears


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Which text a base is calibrated with, and how much of it."""

    path: Path
    sequences: int = 64
    sequence_tokens: int = 512


@dataclass(slots=True)
class Written:
    """What was written of the compressed weights alone."""

    weights: int = 0
    nbytes: int = 0
    error: float = 0.0  # squared
    norm: float = 0.0  # squared
    seconds: float = 0.0

    @property
    def bits_per_weight(self) -> float:
        """Of the compressed weights."""
        return 8 * self.nbytes / self.weights

    @property
    def relative_error(self) -> float:
        """|W' - W| / |W| over all of them."""
        return float((self.error / self.norm) ** 0.5)


def open_walk(
    base: OpenedBase, text: CalibrationText, progress: Progress, device: torch.device = CPU
) -> LayerWalk:
    """The base on its calibration text, before the first layer.

    Raises:
        InvalidRequest: the file is unreadable or too short.
    """
    directory = base.checkpoint.path
    progress.stage("reading the calibration text")
    length = min(text.sequence_tokens, base.architecture.max_position_embeddings)
    ids = sequences(text.path, load_tokenizer(directory), text.sequences, length)
    progress.stage(f"calibrating with {ids.numel()} tokens in {len(ids)} sequences")
    return LayerWalk(load_model(directory, torch.float32, device), ids.to(device))


def layer_weights(base: OpenedBase, layer: int) -> list[str]:
    """The weights of a layer's linears, in the order of computation."""
    linears = layer_linears(base.architecture, layer)
    return [f"{module}.weight" for linear in linears for module, _ in linear.parts]


def copy_text_side(base: Path, directory: Path) -> None:
    """Everything beside config and weights: tokenizer, chat template, generation defaults."""
    kinds = (".json", ".jinja", ".model", ".txt")
    for file in sorted(path for path in base.iterdir() if path.suffix in kinds):
        if file.name not in ("config.json", INDEX_FILE):
            shutil.copyfile(file, directory / file.name)
