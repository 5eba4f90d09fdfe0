"""What does sketching a base cost? Perplexity of a model, rounded to nearest, and sketched.

Every form is judged by plain transformers in float32 on the first tokens of a text, in windows
without overlap. Rows go to a JSON lines file; what is there is not measured again. The demo base is
dequantised Q4_1 (16 levels for 32 columns): finding that grid again is no result, so give a
fine-tune of it in float32 as well, whose weights lie off the grid.

    python -m benchmarks.sketch --base DIR --name NAME --text test.txt --calibration valid.txt
    python -m benchmarks.sketch --table
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from tsugiki.compress.hf_model import model_of
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.job import SketchBaseJob, sketch_base
from tsugiki.compress_base.sensitivity import DAMPING
from tsugiki.compress_base.sketch import POWER, ROUNDS
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.checkpoint import EMBEDDING, LM_HEAD
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.model.layout import all_linears
from tsugiki.model.sketched import CODEBOOKS, INDEX, SketchSettings
from tsugiki.model.stored_form import CONFIG_KEY
from tsugiki.tune.sketch_base import TUNED

ROWS = Path(__file__).parent / "results" / "sketch.rows.jsonl"


HEAD_AT_8_BITS = "lm_head at 8 bits per row, all else as it is"


class Form(NamedTuple):
    """One way to hold the linears."""

    name: str
    settings: SketchSettings | None  # None: not sketched
    calibrated: bool = False


FORMS = (
    Form("as it is", None),
    Form("round to nearest, 4 bits per row", None),
    Form(HEAD_AT_8_BITS, None),
    Form("sketch 4 bits, 4 groups", SketchSettings(4, 4), calibrated=True),
    Form("sketch 4 bits, 1 group", SketchSettings(4, 1), calibrated=True),
    Form("round to nearest, 3 bits per row", None),
    Form("sketch 3 bits, 1 group", SketchSettings(3, 1), calibrated=True),
    Form("sketch 3 bits, 4 groups", SketchSettings(3, 4), calibrated=True),
    Form("sketch 4 bits, 1 group, k-means alone", SketchSettings(4, 1)),
    Form("sketch 4 bits, 4 groups, k-means alone", SketchSettings(4, 4)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one base."""

    base: str
    form: str
    tokens: int  # judged on
    window: int
    calibration_tokens: int
    power: float  # of sensitivity in k-means; 0 without calibration
    damping: float  # of the Gram matrix; 0 without calibration
    rounds: int  # in which codes and codebooks were fitted to each other
    bits_per_weight: float  # of the linears, codebooks or scales included
    relative_error: float  # of their weights
    perplexity: float
    seconds: float  # of making the form

    @property
    def key(self) -> "Key":
        """See `Key`."""
        how = self.calibration_tokens, self.power, self.damping, self.rounds
        return Key(self.base, self.form, self.tokens, self.window, *how)


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    base: str
    form: str
    tokens: int
    window: int
    calibration_tokens: int
    power: float
    damping: float
    rounds: int


def rounded_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Each row on 2^bits equally spaced levels from its least to its largest weight."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    step = ((high - low) / ((1 << bits) - 1)).clamp_min(1e-12)
    return low + step * ((weight - low) / step).round()


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp of the mean loss of every token but each window's first."""
    total = 0.0
    for window in windows:
        ids = window.to(model.device)
        logits = model(ids[None], use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
    return float(torch.tensor(total / (windows.numel() - len(windows))).exp())


def linears(base: OpenedBase) -> set[str]:
    """The weights that are sketched."""
    return {f"{m}.weight" for line in all_linears(base.architecture) for m, _ in line.parts}


def relative_error(base: OpenedBase, change: Callable[[Tensor], Tensor]) -> float:
    """|W' - W| / |W| over all linears."""
    error = norm = 0.0
    for name in linears(base):
        weight = base.checkpoint.tensor(name).float()
        error += float((change(weight) - weight).square().sum())
        norm += float(weight.square().sum())
    return float((error / norm) ** 0.5)


def tensors(base: OpenedBase, change: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """All parameters in float32, the layers' linears changed."""
    changed = linears(base)
    for name in base.checkpoint.names():
        weight = base.checkpoint.tensor(name).float()
        yield name, change(weight) if name in changed else weight


def with_rounded_head(base: OpenedBase) -> Iterator[tuple[str, Tensor]]:
    """All parameters in float32, lm_head's rows on 256 equally spaced levels each."""
    yield from ((name, w) for name, w in tensors(base, lambda w: w) if name != LM_HEAD)
    source = LM_HEAD if LM_HEAD in base.checkpoint else EMBEDDING
    yield LM_HEAD, rounded_to_nearest(base.checkpoint.tensor(source).float(), 8)


def measure(form: Form, base: OpenedBase, windows: Tensor, arguments: Any) -> Row:
    """Make the form, judge it."""
    started = time.monotonic()
    if form.settings is None:
        width = next((bits for bits in (3, 4) if f"{bits} bits" in form.name), None)
        change = (lambda w: w) if width is None else (lambda w: rounded_to_nearest(w, width))
        if form.name == HEAD_AT_8_BITS:
            untied = {**base.checkpoint.config, "tie_word_embeddings": False}
            model = model_of(untied, with_rounded_head(base))
        else:
            model = model_of(base.checkpoint.config, tensors(base, change))
        bits = 16.0 if width is None else width + 32 / base.architecture.hidden_size
        error = relative_error(base, change)
    else:
        with TemporaryDirectory() as scratch:
            ready = open_base(arguments.sketched or sketched(form, base, Path(scratch), arguments))
            model = model_of(base.checkpoint.config, tensors(ready, lambda w: w))
            bits, error = as_stored(base, ready)
    seconds = time.monotonic() - started
    found = perplexity(model.to(arguments.device), windows)
    of_form = form.name, windows.numel(), windows.shape[1], *calibration_of(form, arguments)
    return Row(arguments.name, *of_form, bits, error, found, seconds)


def sketched(form: Form, base: OpenedBase, scratch: Path, arguments: Any) -> Path:
    """The directory of a sketched base, made unless it was kept."""
    name = form.name.replace(" ", "-").replace(",", "")
    out: Path = (arguments.keep or scratch) / name
    if form.settings is not None and not out.exists():
        job = SketchBaseJob(
            base.checkpoint.path,
            out,
            form.settings,
            arguments.calibration if form.calibrated else None,
            arguments.sequences,
            damping=arguments.damping,
            power=arguments.power,
            device=choose_device(arguments.device),
        )
        sketch_base(job, Progress())
    return out


def calibration_of(form: Form, arguments: Any) -> tuple[int, float, float, int]:
    """Tokens, power, damping and rounds."""
    rounds = 0 if form.settings is None else ROUNDS
    if not form.calibrated:
        return 0, 0.0, 0.0, rounds
    return arguments.sequences * 512, arguments.power, arguments.damping, rounds


def form_of(directory: Path) -> Form:
    """The form that a calibrated sketched base is of."""
    checkpoint = open_base(directory).checkpoint
    settings = checkpoint.form
    if not isinstance(settings, SketchSettings):
        raise SystemExit(f"--sketched {directory} is not sketched")
    name = f"sketch {settings.bits} bits, {settings.groups} group" + "s" * (settings.groups > 1)
    tuned = checkpoint.config[CONFIG_KEY].get(TUNED)
    if tuned is not None:
        name += f", tuned {tuned['steps']} steps of {tuned['batch_tokens']} tokens"
    return Form(name, settings, calibrated=True)


def as_stored(base: OpenedBase, ready: OpenedBase) -> tuple[float, float]:
    """Bits per weight and relative error of the sketched linears of a directory."""
    nbytes = weights = 0
    error = norm = 0.0
    for name in filter(ready.checkpoint.is_compressed, ready.checkpoint.names()):
        plain, read = base.checkpoint.tensor(name).float(), ready.checkpoint.reader(name)
        nbytes += read(INDEX).nbytes + read(CODEBOOKS).nbytes
        weights += plain.numel()
        norm += float(plain.square().sum())
        error += float((ready.checkpoint.tensor(name).float() - plain).square().sum())
    return 8 * nbytes / weights, (error / norm) ** 0.5


def table(rows: list[Row]) -> str:
    """Markdown; perplexity beside that of the same base as it is."""
    plain = {(r.base, r.tokens): r.perplexity for r in rows if r.form == FORMS[0].name}
    lines = [
        "| base | form | calibration | bits per weight | relative error | perplexity "
        "| beside the base |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = plain.get((row.base, row.tokens))
        beside = "" if own is None else f"{100 * (row.perplexity / own - 1):+.1f} %"
        numbers = f"{row.bits_per_weight:.2f} | {row.relative_error:.4f} | {row.perplexity:.3f}"
        how = (
            f"{row.calibration_tokens} tokens, p {row.power:g}, damping {row.damping:g}, "
            f"{row.rounds} rounds"
        )
        shown = how if row.calibration_tokens else "none"
        lines.append(f"| {row.base} | {row.form} | {shown} | {numbers} | {beside} |")
    return "\n".join(lines)


def read_rows(path: Path) -> list[Row]:
    """What was measured."""
    return [Row(**row) for row in json_lines(path)]


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--power", type=float, default=POWER)
    parser.add_argument("--damping", type=float, default=DAMPING)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--forms", nargs="+", default=[""], help="only those that begin so")
    parser.add_argument("--sketched", type=Path, help="judge this sketched base instead")
    parser.add_argument("--keep", type=Path, help="directory that sketched bases are kept in")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows)
    if not arguments.table:
        base = open_base(resolve_base(arguments.base, default_cache_dir()))
        tokenizer = load_tokenizer(base.checkpoint.path)
        windows = sequences(arguments.text, tokenizer, arguments.windows, arguments.window)
        known = {row.key for row in rows}
        chosen = [form for form in FORMS if form.name.startswith(tuple(arguments.forms))]
        for form in chosen if arguments.sketched is None else [form_of(arguments.sketched)]:
            how = calibration_of(form, arguments)
            if Key(arguments.name, form.name, windows.numel(), windows.shape[1], *how) in known:
                continue
            row = measure(form, base, windows, arguments)
            append_json_lines(arguments.rows, [asdict(row)])
            rows.append(row)
            print(f"{row.form}: perplexity {row.perplexity:.3f}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
