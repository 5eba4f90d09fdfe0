"""Calibration text as token ids: plain text, or the dialogues of a JSONL file, cut into sequences.

Owns: the cutting. Does not know: what is calibrated.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.dialogues import read_dialogues
from tsugiki.errors import InvalidRequest


def sequences(path: Path, tokenizer: Any, count: int, length: int) -> Tensor:
    """int64 [up to `count`, `length`]: the file's first tokens, one sequence after the other.

    Raises:
        InvalidRequest: unreadable, or too short for one sequence.
    """
    ids = torch.tensor(_ids(path, tokenizer, count * length), dtype=torch.int64)
    whole = min(count, len(ids) // length)
    if not whole:
        raise InvalidRequest(
            f"{path} has {len(ids)} tokens, fewer than one sequence of {length}: give more text"
        )
    return ids[: whole * length].view(whole, length)


def _ids(path: Path, tokenizer: Any, enough: int) -> list[int]:
    if path.suffix == ".jsonl":
        found: list[int] = []
        for dialogue in read_dialogues(path, tokenizer):
            found += dialogue.ids
            if len(found) >= enough:
                break
        return found
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens
