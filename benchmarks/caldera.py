"""What does a CALDERA base cost? Perplexity against the bits that are really stored.

Every form is judged by plain transformers in float32 on the first tokens of a text, in windows
without overlap. Rows go to a JSON lines file; what is there is not measured again. The demo base is
dequantised Q4_1 (16 levels for 32 columns): finding that grid again is no result, so judge bases
made of a fine-tune in float32 as well, whose weights lie off the grid.

    python -m benchmarks.caldera --base demo --name demo --text test.txt --judge BASE ...
    python -m benchmarks.caldera ... --calibration valid.txt --keep DIR --make 2:0 2:32 3:0 --mix
    python -m benchmarks.caldera --table

--make BITS:RANK makes bases that are not in --keep yet. --mix judges the base of 2 bits without
factors with so many layers of that of 3 bits, evenly spread, as make it no smaller than the base of
2 bits and rank 32: bits for bits, what are factors worth?

    python -m benchmarks.caldera --plot BASE --out errors.png
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from benchmarks.sketch import perplexity, rounded_to_nearest, tensors
from tsugiki.compress.hf_model import load_model, model_of
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.base import CalibrationText
from tsugiki.compress_base.caldera import Settings
from tsugiki.compress_base.caldera_job import REPORT_FILE, CalderaBaseJob, caldera_base
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.caldera import CalderaSettings
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.model.stored_form import dense_config

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


def plain_row(form: str, base: OpenedBase, windows: Tensor, name: str, device: torch.device) -> Row:
    """The base itself, or rounded to nearest."""
    width = NEAREST.get(form)
    change = _unchanged if width is None else partial(rounded_to_nearest, bits=width)
    bits = 16.0 if width is None else width + 32 / base.architecture.hidden_size
    model = model_of(base.checkpoint.config, tensors(base, change))
    found = perplexity(model.to(device), windows)
    return Row(name, form, *_shape(windows), bits, 0.0, 0.0, 0, found)


def _unchanged(weight: Tensor) -> Tensor:
    return weight


def judged_row(directory: Path, windows: Tensor, name: str, device: torch.device) -> Row:
    """A base that compress-base caldera wrote."""
    report = report_of(directory)
    errors = [line["errors"] for line in report["linears"]]
    return Row(
        name,
        form_of(directory),
        *_shape(windows),
        report["bits_per_weight"],
        report["model_bits"],
        error_of(report["linears"]),
        max(map(len, errors)),
        perplexity(load_model(directory).to(device), windows),
    )


def report_of(directory: Path) -> dict[str, Any]:
    """What compress-base caldera says of a base."""
    found: dict[str, Any] = json.loads((directory / REPORT_FILE).read_text(encoding="utf-8"))
    return found


def bytes_of(report: dict[str, Any]) -> int:
    """Of all linears."""
    return sum(line["backbone_bytes"] + line["factor_bytes"] for line in report["linears"])


def error_of(linears: list[dict[str, Any]]) -> float:
    """Root of the mean square over linears of what was kept."""
    return float((sum(min(line["errors"]) ** 2 for line in linears) / len(linears)) ** 0.5)


def made(bits: int, rank: int, arguments: argparse.Namespace, base: OpenedBase) -> Path:
    """A base of these in --keep, made now or before."""
    out: Path = arguments.keep / f"{arguments.name}-{bits}-{rank}"
    if not out.exists():
        text = CalibrationText(arguments.calibration, arguments.sequences)
        settings = Settings(bits, rank, iterations=arguments.iterations)
        job = CalderaBaseJob(base.checkpoint.path, out, settings, text, device=arguments.device)
        print(f"{out}: {caldera_base(job, Progress()).seconds:.0f} s", flush=True)
    return out


class Mixed:
    """The base of 2 bits with some layers of that of 3, of no fewer bytes than one with factors."""

    def __init__(self, two: Path, three: Path, factored: Path) -> None:
        self._two, self._three = open_base(two), open_base(three)
        kept = [report_of(path)["linears"] for path in (two, three)]
        nbytes, most, wanted = (bytes_of(report_of(path)) for path in (two, three, factored))
        layers = self._two.architecture.num_layers
        count = min(layers, -(-(wanted - nbytes) * layers // (most - nbytes)))
        self.layers = {number * layers // count for number in range(count)}
        self.form = f"LDLQ on E8P, 2 bits, {count} of {layers} layers 3 bits"
        self._linears = [line[self._is_wide(line[0]["name"])] for line in zip(*kept, strict=True)]

    def _is_wide(self, name: str) -> bool:
        parts = name.split(".")
        return parts[1] == "layers" and int(parts[2]) in self.layers

    def row(self, windows: Tensor, name: str, device: torch.device) -> Row:
        """Judge it."""
        checkpoint, wide = self._two.checkpoint, self._three.checkpoint
        chosen = (
            (tensor, (wide if self._is_wide(tensor) else checkpoint).tensor(tensor).float())
            for tensor in checkpoint.names()
        )
        model = model_of(dense_config(checkpoint.config), chosen).to(device)
        nbytes = sum(line["backbone_bytes"] for line in self._linears)
        bits = 8 * nbytes / sum(line["weights"] for line in self._linears)
        error, found = error_of(self._linears), perplexity(model, windows)
        return Row(name, self.form, *_shape(windows), bits, 0.0, error, 1, found)


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

    report = report_of(directory)
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
    for form, job in jobs(arguments, base, windows):
        if (arguments.name, form) not in known:
            row = job()
            append_json_lines(arguments.rows, [asdict(row)])
            rows.append(row)
            print(f"{row.form}: perplexity {row.perplexity:.3f}", flush=True)


def jobs(
    arguments: argparse.Namespace, base: OpenedBase, windows: Tensor
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Each form and how to measure it."""
    to_judge = windows, arguments.name, arguments.device
    for form in (AS_IT_IS, *NEAREST):
        yield form, partial(plain_row, form, base, *to_judge)
    for path in arguments.judge:
        yield form_of(path), partial(judged_row, path, *to_judge)
    for bits, rank in (map(int, asked.split(":")) for asked in arguments.make):
        path = made(bits, rank, arguments, base)
        yield form_of(path), partial(judged_row, path, *to_judge)
    if arguments.mix:
        mixed = Mixed(*(made(*asked, arguments, base) for asked in ((2, 0), (3, 0), (2, 32))))
        yield mixed.form, partial(mixed.row, *to_judge)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--judge", type=Path, nargs="*", default=[], metavar="BASE")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--sequences", type=int, default=32, help="of calibration")
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--make", nargs="*", default=[], metavar="BITS:RANK")
    parser.add_argument("--keep", type=Path, help="directory that --make keeps bases in")
    parser.add_argument("--mix", action="store_true", help="makes 2:0, 3:0 and 2:32")
    parser.add_argument("--device", type=choose_device, default="cpu", help="auto, cpu or cuda")
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
