"""A fine-tune's change in every form of saten at equal honest bytes: its task, before and after
training in the compressed space.

The changes of the layers' linears are put into a form; all else is the fine-tune's own. A plain
transformers model in float32 answers the test file. With --steps cores and values are then trained,
places fixed, towards what the fine-tune expects of the training file (KL), and it answers again.

    python -m benchmarks.saten.changes --base DIR --tuned DIR --name banking77 --data train.jsonl
        --test test.jsonl --sizes 0.5 1 2 [--steps 200] [--device cuda --jobs 16]
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.distill.score import score
from benchmarks.results import append_json_lines, json_lines
from benchmarks.saten.forms import FORMS
from benchmarks.saten.whole import in_form, model_with, trained, weights_of
from tsugiki.codecs.saten_fit import DEFAULTS
from tsugiki.compress.dialogues import read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.tune.repair import RepairPlan

ROWS = Path(__file__).parents[1] / "results" / "saten.changes.jsonl"
BY_NAME = {form.name: form for form in FORMS}
WHOLE, NONE = "as it is", "no change of the linears"
MOST_TOKENS = 512  # of a dialogue


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    tuned: str
    form: str
    size: float
    examples: int
    steps: int


class Judged(NamedTuple):
    """On the test file."""

    exact: float  # share of answers that are right
    kl: float  # from the fine-tune, nats per answer token


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one fine-tune's change."""

    tuned: str
    form: str
    size: float  # bits per parameter that were offered
    examples: int
    steps: int
    bits: float  # that were taken, over the linears
    relative_error: float  # of their changes
    packed: Judged
    trained: Judged | None = None

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(self.tuned, self.form, self.size, self.examples, self.steps)


class Subject:
    """A fine-tune and its base, and what is asked of both."""

    def __init__(self, arguments: Any) -> None:
        self.device = choose_device(arguments.device)
        base = open_base(resolve_base(arguments.base, default_cache_dir()))
        self.tuned = open_base(arguments.tuned)
        self.base = weights_of(base)
        changed = weights_of(self.tuned)
        self.changes = {name: weight - self.base[name] for name, weight in changed.items()}
        self.teacher = load_model(arguments.tuned, torch.float32, self.device)
        read = partial(
            read_dialogues, tokenizer=load_tokenizer(arguments.tuned), max_tokens=MOST_TOKENS
        )
        self.training = list(read(arguments.data)) if arguments.steps else []
        self.test = list(read(arguments.test, limit=arguments.examples))

    def judged(self, model: Any) -> Judged:
        """Its answers."""
        found = score(model, self.teacher, self.test)
        return Judged(found["accuracy"]["value"], found["kl"]["value"])

    def model(self, change: dict[str, Tensor] | None) -> Any:
        """The fine-tune with other changes of its linears, or none."""
        known = change or {}
        return model_with(
            self.tuned, self.device, lambda name, _: self.base[name] + known.get(name, 0.0)
        )


def measure(case: Key, subject: Subject, arguments: Any) -> Row:
    """Make the form, judge it; train it where that is asked for, judge it again."""
    if case.form in (WHOLE, NONE):
        model = subject.teacher if case.form == WHOLE else subject.model(None)
        bits, error = (32.0, 0.0) if case.form == WHOLE else (0.0, 1.0)
        return Row(*case, bits, error, subject.judged(model))
    made = in_form(
        BY_NAME[case.form], case.size, subject.changes, DEFAULTS["rows_per_step"], arguments.jobs
    )
    model = subject.model({name: made.dense(name) for name in subject.changes})
    row = Row(*case, made.bits, made.relative_error, subject.judged(model))
    if not case.steps:
        return row
    plan = RepairPlan(case.steps, arguments.batch_tokens, learning_rate=arguments.learning_rate)
    trained(model, subject.teacher, made, subject.training, plan)
    return replace(row, trained=subject.judged(model))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| fine-tune | form | bits | relative error | right | KL | steps | right after | KL after |"
    ]
    lines.append("|---" * 9 + "|")
    for row in rows:
        after = "| |" if row.trained is None else _cells(row.trained)
        lines.append(
            f"| {row.tuned} | {row.form} | {row.bits:.3f} | {row.relative_error:.3f} "
            f"{_cells(row.packed)} {row.steps} {after}"
        )
    return "\n".join(lines)


def _cells(judged: Judged) -> str:
    return f"| {judged.exact:.3f} | {judged.kl:.4f} |"


def cases(arguments: Any, examples: int) -> Iterator[Key]:
    """What is asked for; the fine-tune itself and its base are not trained."""
    for form in (WHOLE, NONE):
        yield Key(arguments.name, form, 0.0, examples, 0)
    for size in arguments.sizes:
        for form in arguments.forms:
            yield Key(arguments.name, form, size, examples, arguments.steps)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", type=Path, help="JSONL to train on; needed with --steps")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--examples", type=int, help="of the test file (all)")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument(
        "--forms", nargs="+", choices=BY_NAME, default=["low rank", "sparse", "low rank + sparse"]
    )
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: none")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=1.0, help="factor on repair's rates")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="matrices packed at a time")
    parser.add_argument("--rows", type=Path, default=ROWS)
    arguments = parser.parse_args()
    rows = [_read(row) for row in json_lines(arguments.rows)]
    subject = Subject(arguments)
    for case in cases(arguments, len(subject.test)):
        if case in {row.key for row in rows}:
            continue
        rows.append(measure(case, subject, arguments))
        append_json_lines(arguments.rows, [asdict(rows[-1])])
        print(f"{rows[-1]}", flush=True)
    print(table(rows))


def _read(row: dict[str, Any]) -> Row:
    judged = {key: Judged(*row[key]) for key in ("packed", "trained") if row[key] is not None}
    return Row(**{**row, **judged})


if __name__ == "__main__":
    main()
