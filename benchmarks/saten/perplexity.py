"""Whole models in every form of saten at equal honest bytes: perplexity, before and after training.

The layers' linears are put into a form at so many bits per weight, all alike; embeddings stay. A
plain transformers model in float32 is judged on the first tokens of a text, in windows without
overlap. With --steps its cores and values are then trained, places fixed, towards what the original
expects of another text (KL), and it is judged again. The demo base is dequantised Q4_1 (16 levels
for 32 columns): give a full fine-tune in float32 as well, whose weights lie off that grid.

    python -m benchmarks.saten.perplexity --base DIR --name NAME --text test.txt --sizes 3.03 4
        [--train valid.txt --steps 200] [--device cuda --jobs 16]
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from benchmarks.saten.forms import FORMS
from benchmarks.saten.whole import in_form, model_with, trained, weights_of
from benchmarks.sketch import perplexity, rounded_to_nearest
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.tune.repair import RepairPlan

ROWS = Path(__file__).parents[1] / "results" / "saten.perplexity.jsonl"
BY_NAME = {form.name: form for form in FORMS}
PLAIN, ROUNDED = "as it is", "round to nearest"
ROWS_PER_STEP = 1  # of sparse parts
MOST_SEQUENCES = 4096  # of the text that is trained on


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    base: str
    form: str
    size: float
    tokens: int
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one base."""

    base: str
    form: str
    size: float  # bits per weight that were offered
    tokens: int  # judged on
    bits: float  # that were taken, over the linears
    relative_error: float  # of their weights
    perplexity: float
    steps: int = 0  # of training in the compressed space
    kl: tuple[float, float] | None = None  # from the original on text held out, before and after
    trained: float | None = None  # perplexity after training

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(self.base, self.form, self.size, self.tokens, self.steps)


def measure(case: Key, base: OpenedBase, windows: Tensor, arguments: Any) -> Row:
    """Make the form, judge it; train it where that is asked for, judge it again."""
    device = choose_device(arguments.device)
    if case.form == PLAIN:
        model = model_with(base, device, lambda _, weight: weight)
        return Row(*case[:4], 16.0, 0.0, perplexity(model, windows))
    weights = weights_of(base)
    if case.form == ROUNDED:
        return rounded(case, base, weights, windows, device)
    made = in_form(BY_NAME[case.form], case.size, weights, ROWS_PER_STEP, arguments.jobs)
    model = model_with(base, device, lambda name, _: made.dense(name))
    row = Row(*case[:4], made.bits, made.relative_error, perplexity(model, windows))
    if not case.steps:
        return row
    teacher = load_model(base.checkpoint.path, torch.float32, device)
    tokenizer = load_tokenizer(base.checkpoint.path)
    text = sequences(arguments.train, tokenizer, MOST_SEQUENCES, arguments.window)
    dialogues = [Dialogue(tuple(window.tolist()), 1, scored=False) for window in text]
    plan = RepairPlan(case.steps, arguments.batch_tokens, learning_rate=arguments.learning_rate)
    kl = trained(model, teacher, made, dialogues, plan)
    found = replace(row, steps=case.steps, kl=(kl.kl_before, kl.kl_after))
    return replace(found, trained=perplexity(model, windows))


def rounded(
    case: Key,
    base: OpenedBase,
    weights: Mapping[str, Tensor],
    windows: Tensor,
    device: torch.device,
) -> Row:
    """Two float16 for each row beside the codes."""
    bits = int(case.size)
    model = model_with(base, device, lambda _, weight: rounded_to_nearest(weight, bits))
    error = sum(float((rounded_to_nearest(w, bits) - w).square().sum()) for w in weights.values())
    norm = sum(float(w.square().sum()) for w in weights.values())
    scales = 32.0 * sum(map(len, weights.values())) / sum(w.numel() for w in weights.values())
    return Row(*case[:4], bits + scales, (error / norm) ** 0.5, perplexity(model, windows))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| base | form | tokens | bits per weight | relative error | perplexity | trained |"]
    lines.append("|---" * 7 + "|")
    lines += [
        f"| {r.base} | {r.form} | {r.tokens} | {r.bits:.2f} | {r.relative_error:.4f} "
        f"| {r.perplexity:,.2f} | {_trained(r)} |"
        for r in rows
    ]
    return "\n".join(lines)


def _trained(row: Row) -> str:
    if row.kl is None:
        return ""
    before, after = row.kl
    return f"{row.trained:,.2f} ({row.steps} steps; KL {before:.3f}, then {after:.3f})"


def cases(arguments: Any, tokens: int) -> Iterator[Key]:
    """What is asked for; what has no cores and values is not trained."""
    for size in arguments.sizes:
        for form in arguments.forms:
            steps = arguments.steps if form in BY_NAME else 0
            yield Key(arguments.name, form, 16.0 if form == PLAIN else size, tokens, steps)


def options() -> argparse.ArgumentParser:
    """The command line."""
    known = [PLAIN, ROUNDED, *BY_NAME]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sizes", type=float, nargs="+", default=[3.03, 4.0])
    parser.add_argument("--forms", nargs="+", choices=known, default=known)
    parser.add_argument("--train", type=Path, help="text; needed with --steps")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: none")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=1.0, help="factor on repair's rates")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="matrices packed at a time")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    return parser


def main() -> None:
    """Measure what is missing, print the table."""
    arguments = options().parse_args()
    rows = [Row(**row) for row in json_lines(arguments.rows)]
    if not arguments.table:
        base = open_base(resolve_base(arguments.base, default_cache_dir()))
        tokenizer = load_tokenizer(base.checkpoint.path)
        windows = sequences(arguments.text, tokenizer, arguments.windows, arguments.window)
        for case in cases(arguments, windows.numel()):
            if case in {row.key for row in rows}:
                continue
            rows.append(measure(case, base, windows, arguments))
            append_json_lines(arguments.rows, [asdict(rows[-1])])
            print(f"{rows[-1]}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
