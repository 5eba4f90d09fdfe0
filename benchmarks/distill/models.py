"""The teacher and the student of the comparison, made out of one base where they are missing.

Owns: how both are made. Does not know: runs. The teacher is a full fine-tune on the training
messages (examples/train.py, the settings of the shipped banking77 fine-tune), the student the base
without its least influential layers.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tsugiki.compress.progress import Progress
from tsugiki.distill.prune import prune

TRAIN = Path(__file__).parents[2] / "examples" / "train.py"
RECORD = "training.json"  # what train.py writes last
LEARNING_RATE, BATCH_TOKENS, SEED = 1.2e-4, 1280, 0
TOLD = ("seed", "steps", "lr", "batch_tokens", "examples", "relative_delta", "seconds", "device")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How much training, how many layers."""

    base: Path
    data: Path
    steps: int
    layers: int


def make_teacher(recipe: Recipe, out: Path, device: torch.device) -> None:
    """A float32 checkpoint; an interrupted training goes on."""
    if (out / RECORD).is_file():
        return
    command = [sys.executable, TRAIN, "--base", recipe.base, "--data", recipe.data, "--out", out]
    command += ["--steps", recipe.steps, "--lr", LEARNING_RATE, "--batch-tokens", BATCH_TOKENS]
    command += ["--seed", SEED, "--device", device.type, "--resume"]
    subprocess.run(list(map(str, command)), check=True)


def make_student(recipe: Recipe, out: Path) -> None:
    """The base cut to so many layers."""
    if not out.is_dir():
        prune(recipe.base, recipe.layers, out, recipe.data, Progress())


def training_of(teacher: Path) -> dict[str, Any] | None:
    """How a teacher was trained, for its row; None where it does not say."""
    path = teacher / RECORD
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: found[key] for key in TOLD if key in found}
