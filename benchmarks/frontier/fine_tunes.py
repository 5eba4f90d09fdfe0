"""Fine-tunes of kinds that examples/ does not have; interrupted, they go on.

    python -m benchmarks.frontier.fine_tunes large --base BASE_DIR --data-dir DATA --out ft

writes ft/large (a float32 checkpoint) and ft/large.{train,calibration,test}.jsonl. DATA holds
banking77/{train,test}.csv, gsm8k/{train,test}.jsonl and wikitext2/{valid,test}.txt as their
authors publish them.

Owns: which kinds there are, their data and settings. Does not know: the training loop
(examples/train.py).
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.distill.models import RECORD, TRAIN
from tsugiki.config import DEVICES
from tsugiki.model.device import choose_device

CALIBRATION_EXAMPLES = 64
BATCH_TOKENS = 2048
OPENING, ANSWER, LEAST = 24, 180, 90  # words of an article that are given, at most and least asked
Line = dict[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One fine-tune: what it learns and how hard."""

    lines: Callable[[Path, bool], list[Line]]  # (data folder, test?)
    learning_rate: float
    steps: int
    embeddings: bool = False


def intents(data: Path, test: bool) -> list[Line]:
    """Banking77: a customer's message, and the name of its intent."""
    with (data / "banking77" / f"{_split(test)}.csv").open(encoding="utf-8", newline="") as file:
        return [
            {"prompt": " ".join(row["text"].split()), "answer": row["category"].replace("_", " ")}
            for row in csv.DictReader(file)
        ]


def worked_answers(data: Path, test: bool) -> list[Line]:
    """GSM8K: a problem, and its solution step by step (about 130 tokens)."""
    text = (data / "gsm8k" / f"{_split(test)}.jsonl").read_text(encoding="utf-8")
    found = map(json.loads, text.splitlines())
    return [{"prompt": line["question"], "answer": line["answer"]} for line in found]


def articles(data: Path, test: bool) -> list[Line]:
    """WikiText-2: the first words of a paragraph, and the paragraph (about 200 tokens)."""
    text = (data / "wikitext2" / f"{'test' if test else 'valid'}.txt").read_text(encoding="utf-8")
    return list(_paragraphs(text.splitlines()))


def mixture(data: Path, test: bool) -> list[Line]:
    """As much of each, in random order."""
    parts = [intents(data, test), worked_answers(data, test), articles(data, test)]
    count = min(map(len, parts))
    mixed = [line for part in parts for line in random.Random(0).sample(part, count)]
    random.Random(0).shuffle(mixed)
    return mixed


# |D| / |W| is about learning rate x sqrt(steps): "large" is made to move its weights by 5 %.
KINDS = {
    "narrow": Kind(intents, 1.2e-4, 200),
    "large": Kind(intents, 3e-3, 80),
    "maths": Kind(worked_answers, 1e-4, 300),
    "embeddings": Kind(worked_answers, 2e-4, 150, embeddings=True),
    "mixture": Kind(mixture, 2e-4, 200),
    "articles": Kind(articles, 2e-4, 120),
}


def _split(test: bool) -> str:
    return "test" if test else "train"


def _paragraphs(lines: Sequence[str]) -> Iterator[Line]:
    for line in lines:
        words = line.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".").split()
        if len(words) >= OPENING + LEAST and "=" not in words[:2]:
            opening, rest = words[:OPENING], words[OPENING : OPENING + ANSWER]
            yield {"prompt": f"Continue: {' '.join(opening)}", "answer": " ".join(rest)}


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_data(name: str, data: Path, out: Path) -> Path:
    """Training, calibration (of the training lines) and test lines in random order; the first's
    path."""
    kind = KINDS[name]
    train, test = kind.lines(data, False), kind.lines(data, True)
    for lines in (train, test):
        random.Random(0).shuffle(lines)
    paths = {role: out / f"{name}.{role}.jsonl" for role in ("train", "calibration", "test")}
    write_lines(paths["train"], train)
    write_lines(paths["calibration"], train[:CALIBRATION_EXAMPLES])
    write_lines(paths["test"], test)
    return paths["train"]


@dataclass(frozen=True, slots=True)
class Effort:
    """How training is run; no steps: as many as the kind has."""

    batch_tokens: int = BATCH_TOKENS
    steps: int | None = None
    device: str = "cpu"


def command(name: str, base: Path, lines: Path, out: Path, effort: Effort) -> list[str]:
    """The call of examples/train.py."""
    kind = KINDS[name]
    given = [sys.executable, TRAIN, "--base", base, "--data", lines, "--out", out / name]
    given += ["--lr", kind.learning_rate, "--steps", effort.steps or kind.steps]
    given += ["--batch-tokens", effort.batch_tokens, "--device", effort.device]
    given += ["--resume", "--checkpoint-every", 100]
    return [*map(str, given), *(["--embeddings"] if kind.embeddings else [])]


def main() -> None:
    """Write the data, train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of fine-tunes")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="padded, of a step")
    parser.add_argument("--steps", type=int, help="default: the kind's")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if (arguments.out / arguments.kind / RECORD).is_file():
        return
    device = choose_device(arguments.device).type
    lines = write_data(arguments.kind, arguments.data_dir, arguments.out)
    base, out = arguments.base, arguments.out
    effort = Effort(arguments.batch_tokens, arguments.steps, device)
    subprocess.run(command(arguments.kind, base, lines, out, effort), check=True)


if __name__ == "__main__":
    main()
