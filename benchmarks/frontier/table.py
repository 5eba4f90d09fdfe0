"""The frontier as tables and plots, out of the rows that were measured.

python -m benchmarks.frontier.table rows.jsonl --plots FOLDER
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.frontier.rows import Row, read

BF16_BITS = 16
HEADER = (
    "| codec | honest b/p | honest ratio | as its paper counts | KL gold (seeds: least, most) "
    "| KL own answers | top-1 | exact match | retention | KL * b/p * 10^4 |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Point:
    """One codec at one size: the mean over its seeds."""

    codec: str
    rows: Sequence[Row]

    @property
    def bits(self) -> float:
        """Honest bits per parameter."""
        return statistics.fmean(row.bits for row in self.rows)

    @property
    def kls(self) -> list[float]:
        """Of each seed, on gold answers."""
        return [row.kl for row in self.rows if row.kl is not None]

    @property
    def kl(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.kls)

    def line(self) -> str:
        """One line of the Markdown table."""
        nominal = statistics.fmean(row.nominal_bits for row in self.rows)
        spread = f" ({min(self.kls):.4f}, {max(self.kls):.4f})" if len(self.kls) > 1 else ""
        own = _mean(row.own["kl"]["value"] for row in self.rows if row.own)
        top = _mean(row.gold["top1_agreement"]["value"] for row in self.rows if row.gold)
        cells = [
            self.codec,
            f"{self.bits:.4f}",
            f"{BF16_BITS / self.bits:.0f}x",
            f"{BF16_BITS / nominal:.0f}x",
            f"{self.kl:.4f}{spread}",
            "-" if own is None else f"{own:.4f}",
            "-" if top is None else f"{top:.3f}",
            *self._accuracy(),
            f"{self.kl * self.bits * 1e4:.1f}",
        ]
        return f"| {' | '.join(cells)} |"

    def _accuracy(self) -> tuple[str, str]:
        accuracies = [row.gold["accuracy"] for row in self.rows if row.gold]
        variant = _mean(a["variant"]["value"] for a in accuracies if a)
        tuned = _mean(a["tuned"]["value"] for a in accuracies if a)
        if variant is None or not tuned:
            return "-", "-"
        return f"{variant:.1%}", f"{variant / tuned:.1%}"


def points(rows: Iterable[Row]) -> dict[str, dict[float, list[Point]]]:
    """fine-tune -> offered size, large to small -> codecs by rising KL; sizes without a setting
    are left out."""
    grouped: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.kl is not None:
            grouped[row.fine_tune, row.size, row.codec].append(row)
    found: dict[str, dict[float, list[Point]]] = {}
    for (tuned, size, codec), members in sorted(grouped.items(), key=lambda item: -item[0][1]):
        found.setdefault(tuned, {}).setdefault(size, []).append(Point(codec, members))
    for sizes in found.values():
        for ranked in sizes.values():
            ranked.sort(key=lambda point: point.kl)
    return found


def markdown(tuned: str, sizes: Mapping[float, Sequence[Point]]) -> str:
    """The table of one fine-tune, best codec first at every size."""
    lines = [f"## {tuned}", ""]
    for size, ranked in sizes.items():
        lines += [f"### {size:g} b/p", "", HEADER, *(point.line() for point in ranked), ""]
    return "\n".join(lines)


def plot(tuned: str, sizes: Mapping[float, Sequence[Point]], folder: Path) -> Path:
    """KL against honest bits per parameter, both logarithmic; one line for each codec."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6))
    codecs = sorted({point.codec for ranked in sizes.values() for point in ranked})
    for codec in codecs:
        own = [p for ranked in sizes.values() for p in ranked if p.codec == codec]
        axes.plot([p.bits for p in own], [p.kl for p in own], marker="o", label=codec)
    axes.set(xscale="log", yscale="log", title=tuned)
    axes.set(xlabel="honest bits per parameter", ylabel="KL to the fine-tune, nats per token")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    file = folder / f"frontier-{tuned}.png"
    figure.savefig(file, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return file


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def main() -> None:
    """Print the tables; draw the plots when a folder is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, help="JSON lines of python -m benchmarks.frontier")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="an existing folder")
    arguments = parser.parse_args()
    for tuned, sizes in points(read(arguments.rows)).items():
        print(markdown(tuned, sizes))
        if arguments.plots:
            print(plot(tuned, sizes, arguments.plots))


if __name__ == "__main__":
    main()
