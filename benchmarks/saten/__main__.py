"""Error against bytes: whole weights, deltas and the embedding table, in every form of saten.

Relative error of the matrix (Frobenius) at equal honest bits per parameter: everything that a
decoder needs, places and steps included. Rows go to a JSON lines file; what is there is not
measured again. `--search` tries every reshape of the train (saten_train.candidates) instead.

    python -m benchmarks.saten --tuned banking77=DIR arithmetic=DIR
    python -m benchmarks.saten --table --plot FILE.png
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from benchmarks.saten.forms import FORMS, error_of, packed
from tsugiki.codecs.saten_train import best_modes
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.config import default_cache_dir
from tsugiki.model.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from tsugiki.model.demo_base import resolve_base

ROWS = Path(__file__).parents[1] / "results" / "saten.errors.jsonl"
SIZES = (0.25, 0.5, 1.0, 2.0, 3.03, 4.0, 6.0)
LINEARS = ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj")
PANELS = 3  # of a plot, side by side
SLOW_FOR_TABLES = ("matrix", "vector")
SEARCHED = (0.05, 0.2)  # of the parameters, for --search


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    matrix: str
    form: str
    size: float


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one matrix."""

    matrix: str
    form: str
    size: float  # honest bits per parameter that were offered; of --search: share of parameters
    bits: float  # that were taken; 0: the form has no setting so small, or none was stored
    error: float

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(self.matrix, self.form, self.size)


def matrices(
    base: OpenedBase, tuned: dict[str, Path], layer: int
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Names and how to read them."""
    names = [f"model.layers.{layer}.{linear}.weight" for linear in LINEARS]
    plain = base.checkpoint
    for name in names:
        yield f"weight {name}", partial(weight_of, plain, name)
    for task, directory in tuned.items():
        other = open_checkpoint(directory)
        for name in names:
            yield f"delta {task} {name}", partial(delta_of, plain, other, name)
    yield f"weight {EMBEDDING}", partial(weight_of, plain, EMBEDDING)  # takes minutes


def weight_of(base: Checkpoint, name: str) -> Tensor:
    """float32 [out, in]."""
    return base.tensor(name).float()


def delta_of(base: Checkpoint, tuned: Checkpoint, name: str) -> Tensor:
    """float32 [out, in]."""
    return tuned.tensor(name).float() - base.tensor(name).float()


def measured(name: str, read: Callable[[], Tensor], known: set[Key]) -> Iterator[Row]:
    """The forms of one matrix that are not known yet."""
    wanted = [(f, size) for size in SIZES for f in FORMS if Key(name, f.name, size) not in known]
    if not wanted:
        return
    whole = read()
    for form, size in wanted:
        if name == f"weight {EMBEDDING}" and form.modes in SLOW_FOR_TABLES:
            continue  # an unfolding of 5,321 by 5,321 takes minutes for each size
        found = packed(form, whole, size)
        bits = 0.0 if found is None else 8 * found.nbytes / whole.numel()
        error = 1.0 if found is None else error_of(found, whole)
        yield Row(name, form.name, size, bits, error)


def searched(name: str, read: Callable[[], Tensor], known: set[Key]) -> Iterator[Row]:
    """Every reshape at equal numbers of parameters."""
    for share in SEARCHED:
        if any(key.matrix == f"search {name}" and key.size == share for key in known):
            continue
        whole = read()
        for form, error in best_modes(whole, int(share * whole.numel())).items():
            yield Row(f"search {name}", form, share, 0.0, error)


def table(rows: Sequence[Row]) -> str:
    """Markdown, one table for each matrix."""
    lines = []
    for matrix in dict.fromkeys(row.matrix for row in rows if not row.matrix.startswith("search")):
        own = {(row.form, row.size): row for row in rows if row.matrix == matrix}
        lines += ["", f"**{matrix}**", "", "| form | " + " | ".join(map(str, SIZES)) + " |"]
        lines.append("|---" * (len(SIZES) + 1) + "|")
        for form in dict.fromkeys(name for name, _ in own):
            cells = [own.get((form, size)) for size in SIZES]
            shown = ["" if r is None or not r.bits else f"{r.error:.3f}" for r in cells]
            lines.append(f"| {form} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, *_best_reshapes(rows)])


def _best_reshapes(rows: Sequence[Row]) -> list[str]:
    lines = ["", "| search | share of parameters | best | low rank | best TT matrix | TT vector |"]
    lines.append("|---" * 6 + "|")
    found = [row for row in rows if row.matrix.startswith("search")]
    for matrix, share in dict.fromkeys((row.matrix, row.size) for row in found):
        own = {r.form: r.error for r in found if (r.matrix, r.size) == (matrix, share)}
        pairs = min(error for form, error in own.items() if form.startswith("matrix "))
        numbers = own["low rank"], pairs, own["vector"]
        shown = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(
            f"| {matrix.removeprefix('search ')} | {share} | {min(own, key=own.__getitem__)} "
            f"| {shown} |"
        )
    return lines


def plot(rows: Sequence[Row], path: Path) -> None:
    """Error against bits, one panel for each matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kept = sorted((row for row in rows if row.bits), key=lambda row: row.bits)
    names = sorted({row.matrix for row in kept})
    lines = -(-len(names) // PANELS)
    size = (5 * PANELS, 4 * lines)
    figure, axes = pyplot.subplots(lines, PANELS, figsize=size, squeeze=False, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        for form in (form.name for form in FORMS):
            own = [row for row in kept if (row.matrix, row.form) == (name, form)]
            axis.plot([r.bits for r in own], [r.error for r in own], marker="o", label=form)
        axis.set(title=name.replace("model.layers.", ""), xlabel="bits per parameter", yscale="log")
    for line in axes:
        line[0].set_ylabel("relative error")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--tuned", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--search", action="store_true", help="reshapes instead of forms")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    rows = [Row(**row) for row in json_lines(arguments.rows)]
    if not arguments.table:
        tuned = {n: Path(d) for n, _, d in (item.partition("=") for item in arguments.tuned)}
        base = open_base(resolve_base(arguments.base, default_cache_dir()))
        measure = searched if arguments.search else measured
        for name, read in matrices(base, tuned, arguments.layer):
            for row in measure(name, read, {row.key for row in rows}):
                append_json_lines(arguments.rows, [asdict(row)])
                rows.append(row)
                print(f"{name} {row.form} {row.size}: {row.error:.4f}", flush=True)
    print(table(rows))
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
