"""The three files of a task: training, test and calibration examples as JSONL.

Owns: the file names and the choice of the calibration examples. Compression looks at a handful
of training examples to see which inputs the changed weights meet; test examples must stay out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

CALIBRATION_EXAMPLES = 64


def write_jsonl(path: Path, lines: Iterable[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def write_splits(
    out: Path, task: str, train: Sequence[dict[str, str]], test: Sequence[dict[str, str]]
) -> None:
    """Write TASK.train.jsonl, TASK.test.jsonl and TASK.calibration.jsonl into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(f"calibration/{task}").sample(train, CALIBRATION_EXAMPLES)
    for split, lines in (("train", train), ("test", test), ("calibration", chosen)):
        write_jsonl(out / f"{task}.{split}.jsonl", lines)
        print(f"{task} {split}: {len(lines)} examples")
