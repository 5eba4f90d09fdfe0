"""A teacher's top-k expectations on disk, so that teacher and student are never both in memory.

Owns: the directory (cache.json, part-00000.safetensors ...), filling it part by part, reading it.
Does not know: how distributions are compared (divergence.py), what they are used for.

Each part is written whole or not at all, so that an interrupted fill goes on where it stopped. For
each answer token it holds k ids (int32) and k + 1 log probabilities (float32): 8 k + 4 bytes.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.progress import Progress
from tsugiki.distill.batches import Batch, batched, dialogues_digest
from tsugiki.distill.divergence import Target
from tsugiki.distill.teacher import Teacher
from tsugiki.errors import ConfigError

PART = 256  # dialogues
BATCH_TOKENS = 1024
INDEX_FILE = "cache.json"


class TeacherCache:
    """The expectations of one teacher on some dialogues. `identity`: what they depend on beside
    the dialogues (teacher, top k, temperature, dtype), JSON values."""

    def __init__(
        self, directory: Path, dialogues: Sequence[Dialogue], identity: Mapping[str, Any]
    ) -> None:
        self._directory = directory
        self._dialogues = list(dict.fromkeys(dialogues))
        self._identity = {**identity, "dialogues": dialogues_digest(self._dialogues)}

    def fill(self, teacher: Callable[[], Teacher], shared: int, progress: Progress) -> None:
        """Write the parts that are missing; the teacher is loaded only for them. `shared`: see
        `Batch`.

        Raises:
            ConfigError: the directory holds the expectations of something else.
        """
        self._claim()
        parts = [self._dialogues[i : i + PART] for i in range(0, len(self._dialogues), PART)]
        missing = [number for number in range(len(parts)) if not self._part(number).exists()]
        if not missing:
            return
        loaded = teacher()
        for number in progress.track(missing, "asking the teacher"):
            scratch = self._directory / f".part-{number}.new"
            save_file(_expectations(loaded, parts[number], shared), scratch)
            os.replace(scratch, self._part(number))

    def open(self) -> "CachedTeacher":
        """All parts, once they are filled."""
        count = -(-len(self._dialogues) // PART)
        parts = [load_file(self._part(number)) for number in range(count)]
        indices = torch.cat([part["indices"] for part in parts])
        return CachedTeacher(
            self._dialogues, indices, torch.cat([part["log_probs"] for part in parts])
        )

    def _claim(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        index = self._directory / INDEX_FILE
        if not index.exists():
            index.write_text(json.dumps(self._identity, indent=1) + "\n", encoding="utf-8")
            return
        found = json.loads(index.read_text(encoding="utf-8"))
        for key, wanted in self._identity.items():
            if found.get(key) != wanted:
                raise ConfigError(
                    f"--teacher-cache {self._directory} was made with {key} {found.get(key)!r}, "
                    f"this run has {wanted!r}: name another directory"
                )

    def _part(self, number: int) -> Path:
        return self._directory / f"part-{number:05}.safetensors"


class CachedTeacher:
    """A teacher whose answers are known."""

    def __init__(self, dialogues: Sequence[Dialogue], indices: Tensor, log_probs: Tensor) -> None:
        self._indices, self._log_probs = indices, log_probs
        self._places: dict[Dialogue, slice] = {}
        at = 0
        for dialogue in dialogues:
            self._places[dialogue] = slice(at, at + dialogue.answer_length)
            at += dialogue.answer_length

    def target(self, batch: Batch) -> Target:
        """See `Teacher.target`."""
        places = [self._places[dialogue] for dialogue in batch.dialogues]
        return Target(
            torch.cat([self._log_probs[place] for place in places]),
            torch.cat([self._indices[place] for place in places]).long(),
        )


def _expectations(
    teacher: Teacher, dialogues: Sequence[Dialogue], shared: int
) -> dict[str, Tensor]:
    """Of dialogues in their own order; they are asked for in batches of similar length."""
    found: dict[Dialogue, tuple[Tensor, Tensor]] = {}
    for batch in batched(dialogues, BATCH_TOKENS, shared):
        target = teacher.target(batch)
        if target.indices is None:
            raise ConfigError("a teacher cache holds top-k expectations: give --top-k")
        sizes = [dialogue.answer_length for dialogue in batch.dialogues]
        pieces = zip(
            torch.split(target.indices, sizes), torch.split(target.log_probs, sizes), strict=True
        )
        found |= {d: (i.cpu(), p.cpu()) for d, (i, p) in zip(batch.dialogues, pieces, strict=True)}
    return {
        "indices": torch.cat([found[d][0] for d in dialogues]).int(),
        "log_probs": torch.cat([found[d][1] for d in dialogues]),
    }
