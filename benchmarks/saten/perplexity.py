"""Whole models in every form of saten at equal honest bytes: perplexity.

The layers' linears are put into a form at so many bits per weight, all alike; embeddings stay. A
plain transformers model in float32 is judged on the first tokens of a text, in windows without
overlap. The demo base is dequantised Q4_1 (16 levels for 32 columns): give a full fine-tune in
float32 as well, whose weights lie off that grid.

    python -m benchmarks.saten.perplexity --base DIR --name NAME --text test.txt --sizes 3.03 4
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from benchmarks.saten.forms import FORMS, packed
from benchmarks.sketch import perplexity, rounded_to_nearest, tensors
from tsugiki.codecs.saten import CODEC
from tsugiki.compress.hf_model import model_of
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

ROWS = Path(__file__).parents[1] / "results" / "saten.perplexity.jsonl"
BY_NAME = {form.name: form for form in FORMS}
PLAIN, ROUNDED = "as it is", "round to nearest"


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    base: str
    form: str
    size: float
    tokens: int


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

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(self.base, self.form, self.size, self.tokens)


class Made:
    """Weights in a form, and what that took."""

    def __init__(self, form: str, size: float) -> None:
        self._form = form
        self._size = size
        self.bits = self.weights = self.error = self.norm = 0.0

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight as its form has it."""
        found, bits = self._changed(weight)
        self.bits += bits
        self.weights += weight.numel()
        self.error += float((found - weight).square().sum())
        self.norm += float(weight.square().sum())
        return found

    def _changed(self, weight: Tensor) -> tuple[Tensor, float]:
        if self._form == PLAIN:
            return weight, 16.0 * weight.numel()
        if self._form == ROUNDED:  # two float16 for each row
            return rounded_to_nearest(weight, int(self._size)), (
                int(self._size) * weight.numel() + 32.0 * len(weight)
            )
        found = packed(BY_NAME[self._form], weight, self._size)
        if found is None:
            raise SystemExit(f"{self._form} has no setting of {self._size} bits")
        dense = CODEC.effective(weight.new_zeros(weight.shape), found).weight
        return dense, 8.0 * found.nbytes


def measure(case: Key, base: OpenedBase, windows: Tensor) -> Row:
    """Make the form, judge it."""
    made = Made(case.form, case.size)
    model = model_of(base.checkpoint.config, tensors(base, made))
    found = perplexity(model, windows)
    return Row(*case, made.bits / made.weights, (made.error / made.norm) ** 0.5, found)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| base | form | tokens | bits per weight | relative error | perplexity |"]
    lines.append("|---" * 6 + "|")
    lines += [
        f"| {r.base} | {r.form} | {r.tokens} | {r.bits:.2f} | {r.relative_error:.4f} "
        f"| {r.perplexity:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print the table."""
    known = [PLAIN, ROUNDED, *(form.name for form in FORMS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sizes", type=float, nargs="+", default=[3.03, 4.0])
    parser.add_argument("--forms", nargs="+", choices=known, default=known)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    rows = [Row(**row) for row in json_lines(arguments.rows)]
    if not arguments.table:
        base = open_base(resolve_base(arguments.base, default_cache_dir()))
        tokenizer = load_tokenizer(base.checkpoint.path)
        windows = sequences(arguments.text, tokenizer, arguments.windows, arguments.window)
        for size in arguments.sizes:
            for form in arguments.forms:
                case = Key(arguments.name, form, 16.0 if form == PLAIN else size, windows.numel())
                if case in {row.key for row in rows}:
                    continue
                rows.append(measure(case, base, windows))
                append_json_lines(arguments.rows, [asdict(rows[-1])])
                print(f"{rows[-1]}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
