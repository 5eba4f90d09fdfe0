"""A shallower student: some layers of a base left out, everything else as it is.

Owns: names and config.json of the student. Does not know: why these layers (importance.py).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.checkpoint_writer import new_directory, write_text_side, write_weights
from tsugiki.compress.dialogues import read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.distill.importance import block_influence, by_influence, deepest_first
from tsugiki.errors import ConfigError

LAYER = re.compile(r"(?P<before>.*\blayers\.)(?P<index>\d+)(?P<after>\..+)")
EXAMPLES = 64
PATTERN = "sliding_window_pattern"  # an older spelling of layer_types, by position


@dataclass(frozen=True, slots=True)
class Pruned:
    """Which layers of the base are left, and how much each of its layers turns its input."""

    kept: tuple[int, ...]
    influence: tuple[float, ...] | None  # None: chosen without data


def prune(base: Path, layers: int, out: Path, data: Path | None, progress: Progress) -> Pruned:
    """Write a student of `layers` layers, whole or not at all.

    With data, the least influential layers go; without, the deep ones.

    Raises:
        ConfigError: a number of layers that the base cannot be cut to; `out` exists.
        UnsupportedModel, InvalidRequest: the base, the data.
    """
    opened = open_base(base)
    count = opened.architecture.num_layers
    if not 0 < layers < count:
        raise ConfigError(f"--layers is {layers}; the base has {count}: give 1 to {count - 1}")
    influence = None if data is None else _influence(base, data, progress)
    order = deepest_first(count) if influence is None else by_influence(influence)
    kept = tuple(sorted(order[count - layers :]))
    with new_directory(out) as directory:
        config = _config(opened, kept)
        write_weights(directory, config, _tensors(opened, kept), _dtype(opened))
        write_text_side(directory, base, None)
    return Pruned(kept, None if influence is None else tuple(influence))


def _influence(base: Path, data: Path, progress: Progress) -> list[float]:
    progress.stage("measuring what each layer does")
    dialogues = list(read_dialogues(data, load_tokenizer(base), limit=EXAMPLES))
    return block_influence(load_model(base), dialogues)


def _config(base: OpenedBase, kept: Sequence[int]) -> dict[str, Any]:
    raw = base.checkpoint.config
    if raw.get(PATTERN):
        raise ConfigError(
            f"config.json gives layer types as {PATTERN}, which shifts when layers go: "
            "write them out as layer_types"
        )
    config = {**raw, "num_hidden_layers": len(kept), "pruned_to_layers": list(kept)}
    if raw.get("layer_types"):
        config["layer_types"] = [raw["layer_types"][index] for index in kept]
    return config


def _tensors(base: OpenedBase, kept: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    places = {old: new for new, old in enumerate(kept)}
    for name in base.checkpoint.names():
        found = LAYER.fullmatch(name)
        if found is None:
            yield name, base.checkpoint.tensor(name)
        elif (place := places.get(int(found["index"]))) is not None:
            yield f"{found['before']}{place}{found['after']}", base.checkpoint.tensor(name)


def _dtype(base: OpenedBase) -> torch.dtype:
    """Of the embedding; a checkpoint of one dtype is written as it was."""
    return base.checkpoint.dtype(base.layout.embedding)
