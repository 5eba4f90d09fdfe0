"""What does a CALDERA base cost? Perplexity against the bits that are really stored.

Every form is judged by plain transformers in float32 on the first tokens of a text, in windows
without overlap. Rows go to a JSON lines file; what is there is not measured again. The demo base is
dequantised Q4_1 (16 levels for 32 columns): finding that grid again is no result, so judge bases
made of a fine-tune in float32 as well, whose weights lie off the grid.

    tsugiki compress-base caldera --base demo --out BASE --rank 32 --calibration valid.txt
    python -m benchmarks.caldera --base demo --name demo --text test.txt --judge BASE ...
    python -m benchmarks.caldera --table
    python -m benchmarks.caldera --plot BASE --out errors.png
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from benchmarks.sketch import perplexity, rounded_to_nearest, tensors
from tsugiki.compress.hf_model import load_model, model_of
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.caldera_job import REPORT_FILE
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.caldera import CalderaSettings
from tsugiki.model.demo_base import resolve_base

ROWS = Path(__file__).parent / "results" / "caldera.rows.jsonl"
AS_IT_IS = "as it is"
NEAREST = {f"round to nearest, {bits} bits per row": bits for bits in (2, 3)}


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one base."""

    base: str
    form: str
    tokens: int  # judged on
    window: int
    bits_per_weight: float  # of the linears, everything counted
    model_bits: float  # of the whole model
    output_error: float  # relative, under the calibrated inputs; 0: not known
    iterations: int  # of the decomposition; 0: none
    perplexity: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same measurement."""
        return self.base, self.form, self.tokens, self.window, self.iterations


def plain_row(form: str, base: OpenedBase, windows: Tensor, name: str) -> Row:
    """The base itself, or rounded to nearest."""
    width = NEAREST.get(form)
    change = _unchanged if width is None else partial(rounded_to_nearest, bits=width)
    bits = 16.0 if width is None else width + 32 / base.architecture.hidden_size
    found = perplexity(model_of(base.checkpoint.config, tensors(base, change)), windows)
    return Row(name, form, *_shape(windows), bits, 0.0, 0.0, 0, found)


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def judged_row(directory: Path, windows: Tensor, name: str) -> Row:
    """A base that compress-base caldera wrote."""
    report = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))
    errors = [line["errors"] for line in report["linears"]]
    kept = (sum(min(line) ** 2 for line in errors) / len(errors)) ** 0.5
    return Row(
        name,
        form_of(directory),
        *_shape(windows),
        report["bits_per_weight"],
        report["model_bits"],
        kept,
        max(map(len, errors)),
        perplexity(load_model(directory), windows),
    )


def form_of(directory: Path) -> str:
    """Its settings in words."""
    settings = open_base(directory).checkpoint.form
    if not isinstance(settings, CalderaSettings):
        raise SystemExit(f"--judge {directory} is no CALDERA base")
    backbone = f"LDLQ on E8P, {settings.bits} bits"
    if not settings.rank:
        return backbone
    return f"{backbone}, factors of rank {settings.rank} at {settings.factor_bits} bits"


def _shape(windows: Tensor) -> tuple[int, int]:
    return windows.numel(), windows.shape[1]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| base | form | iterations | bits per weight | of the model | output error | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.base, -row.perplexity)):
        known = [f"{row.model_bits:.2f}" if row.model_bits else "-"]
        known.append(f"{row.output_error:.4f}" if row.output_error else "-")
        numbers = f"{row.bits_per_weight:.3f} | {' | '.join(known)} | {row.perplexity:.2f}"
        lines.append(f"| {row.base} | {row.form} | {row.iterations or '-'} | {numbers} |")
    return "\n".join(lines)


def plot(directory: Path, out: Path) -> None:
    """Relative error of the outputs of each kind of linear after each iteration, mean of layers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    report = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))
    kinds: dict[str, list[list[float]]] = {}
    for line in report["linears"]:
        kinds.setdefault(line["name"].split(".")[-2], []).append(line["errors"])
    figure, axes = pyplot.subplots()
    for kind, errors in kinds.items():
        means = [sum(step) / len(step) for step in zip(*errors, strict=True)]
        axes.plot(range(1, len(means) + 1), means, marker="o", label=kind)
    axes.set(xlabel="iteration", ylabel="relative error of outputs", title=form_of(directory))
    axes.legend()
    figure.savefig(out)


def measure(arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Add what is missing to the file and to `rows`."""
    base = open_base(resolve_base(arguments.base, default_cache_dir()))
    tokenizer = load_tokenizer(base.checkpoint.path)
    windows = sequences(arguments.text, tokenizer, arguments.windows, arguments.window)
    known = {(row.base, row.form) for row in rows if _shape(windows) == (row.tokens, row.window)}
    name = arguments.name
    jobs: list[tuple[str, Callable[[], Row]]] = [
        (form_of(path), partial(judged_row, path, windows, name)) for path in arguments.judge
    ]
    jobs += [(form, partial(plain_row, form, base, windows, name)) for form in (AS_IT_IS, *NEAREST)]
    for form, job in jobs:
        if (name, form) not in known:
            row = job()
            append_json_lines(arguments.rows, [asdict(row)])
            rows.append(row)
            print(f"{row.form}: perplexity {row.perplexity:.3f}", flush=True)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--judge", type=Path, nargs="*", default=[], metavar="BASE")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--plot", type=Path, metavar="BASE", help="errors of each iteration")
    parser.add_argument("--out", type=Path, help="of --plot")
    arguments = parser.parse_args()
    if arguments.plot is not None:
        return plot(arguments.plot, arguments.out)
    rows = [Row(**row) for row in json_lines(arguments.rows)]
    if not arguments.table:
        measure(arguments, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
