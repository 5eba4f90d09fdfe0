"""How well is one layer decomposed, and what does each turn of lattice and factors bring?

Errors of outputs relative to the outputs: under the Gram matrix of the calibration text after each
turn (damped, what the decomposition sees), and of what was kept under that of another text (not
damped). All layers before it are as they are. `nearest`: every group on its nearest lattice point,
blind to the inputs.

    python -m benchmarks.caldera_layer --base demo --calibration valid.txt --text test.txt
        [--layer 9] [--linears q_proj gate_proj down_proj] [--ranks 16 32 64] [--plot errors.png]
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.results import append_json_lines, json_lines
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress_base.base import CalibrationText, layer_weights, open_walk
from tsugiki.compress_base.caldera import Decomposed, Metric, Settings, decompose
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki_kernels.lattice import dense

ROWS = Path(__file__).parent / "results" / "caldera.layer.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One form of one linear."""

    base: str
    layer: int
    linear: str
    form: str
    errors: tuple[float, ...]  # of each iteration
    elsewhere: float  # of the one that was kept, on the other text

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What makes two rows the same measurement."""
        return self.base, self.layer, self.linear, self.form


def grams(base: OpenedBase, text: CalibrationText, layer: int, device: str) -> dict[str, Tensor]:
    """By the name of the weight below the layer."""
    walk = open_walk(base, text, Progress(), choose_device(device))
    for number in range(layer):
        walk.advance(number)
    return walk.grams(layer)


def measure(arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Add what is missing to the file and to `rows`."""
    base = open_base(resolve_base(arguments.base, default_cache_dir()))
    layer, known = arguments.layer, {row.key for row in rows}
    here, there = (
        grams(base, CalibrationText(text, sequences), layer, arguments.device)
        for text, sequences in ((arguments.calibration, 32), (arguments.text, 8))
    )
    for name in layer_weights(base, layer):
        linear, below = name.split(".")[-2], name.removeprefix(f"model.layers.{layer}.")
        if linear not in arguments.linears:
            continue
        weight = base.checkpoint.tensor(name).float().to(here[below].device)
        for form in ("nearest", "LDLQ", *(f"rank {rank}" for rank in arguments.ranks)):
            if (arguments.name, layer, linear, form) not in known:
                errors, elsewhere = judged(form, weight, here[below], there[below])
                row = Row(arguments.name, layer, linear, form, errors, elsewhere)
                append_json_lines(arguments.rows, [asdict(row)])
                rows.append(row)
                print(f"{linear} {form}: {elsewhere:.4f}", flush=True)


def judged(
    form: str, weight: Tensor, here: Tensor, there: Tensor
) -> tuple[tuple[float, ...], float]:
    """Errors of each turn, and of what was kept on the other text."""
    metric = Metric(here)
    if form == "nearest":
        blind = Metric(torch.eye(len(here), device=here.device))
        left = weight - whole(decompose(weight, blind, Settings(rank=0)))
        return (relative(left, weight, metric.gram),), relative(left, weight, there)
    rank = 0 if form == "LDLQ" else int(form.removeprefix("rank "))
    found = decompose(weight, metric, Settings(rank=rank))
    return found.errors, relative(weight - whole(found), weight, there)


def whole(found: Decomposed) -> Tensor:
    """Q + L R."""
    backbone = dense(found.backbone)
    return backbone if found.factors is None else backbone + found.factors.product()


def relative(error: Tensor, weight: Tensor, gram: Tensor) -> float:
    """sqrt(tr(E H E^T) / tr(W H W^T))."""
    lost, all_of_it = (float(((m @ gram) * m).sum()) for m in (error, weight))
    return float((lost / all_of_it) ** 0.5)


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| base | layer | linear | form | error of each turn | kept | on other text |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        turns = " ".join(f"{error:.4f}" for error in row.errors)
        lines.append(
            f"| {row.base} | {row.layer} | {row.linear} | {row.form} | {turns} "
            f"| {min(row.errors):.4f} | {row.elsewhere:.4f} |"
        )
    return "\n".join(lines)


def plot(rows: list[Row], out: Path) -> None:
    """Errors of each turn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for row in rows:
        if len(row.errors) > 1:
            turns = range(1, len(row.errors) + 1)
            axes.plot(turns, row.errors, marker="o", label=f"{row.linear}, {row.form}")
    axes.set(xlabel="turn", ylabel="relative error of outputs", ylim=(0, None))
    axes.legend()
    figure.savefig(out)


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--linears", nargs="+", default=["q_proj", "gate_proj", "down_proj"])
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = [Row(**row | {"errors": tuple(row["errors"])}) for row in json_lines(arguments.rows)]
    if arguments.text is not None:
        measure(arguments, rows)
    print(table(rows))
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
