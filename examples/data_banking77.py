"""Banking77 as chat examples: a bank customer's message in, the intent's name in words out.

Owns: the conversion of the published CSV files (PolyAI-LDN/task-specific-datasets, CC-BY-4.0)
to JSONL. The data themselves are not part of this repository.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from splits import write_splits


def intent_name(label: str) -> str:
    """Spell a label in words: `card_arrival` becomes `card arrival`.

    One label of the data set carries a stray capital and question mark; as words they would
    only be noise to learn.
    """
    return label.replace("_", " ").rstrip("?").lower()


def convert(path: Path) -> list[dict[str, str]]:
    """Read one CSV file of the data set into prompt and answer pairs, in its own order."""
    with path.open(encoding="utf-8", newline="") as handle:
        return [
            {"prompt": " ".join(row["text"].split()), "answer": intent_name(row["category"])}
            for row in csv.DictReader(handle)
        ]


def main() -> None:
    """Convert train.csv and test.csv of --data-dir."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds train.csv, test.csv")
    arguments = parser.parse_args()
    train, test = (convert(arguments.data_dir / f"{split}.csv") for split in ("train", "test"))
    write_splits(arguments.out, "banking77", train, test)


if __name__ == "__main__":
    main()
