"""What the draw of the masks weighs, and what the bits of the bias do, on the same masks.

    python -m benchmarks.frontier.draws --tuned ft/banking77 --data banking77.test.jsonl \\
        --calibration banking77.calibration.jsonl --out draws.jsonl     (resumable)

For each seed the linears are packed once; every number of bias bits is then measured on these very
masks, so their difference holds no noise of the draw. KL is taken on the test file ("gold") and on
the half of the calibration file that does not calibrate ("held out"): where the two agree about
seeds, a seed can be chosen by calibration.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.frontier.approximation import Asked
from benchmarks.frontier.stored import packed
from benchmarks.frontier.subject import CALIBRATION_EXAMPLES, GOLD, HELD_OUT, Subject, Texts
from benchmarks.frontier.zero_bin import rounded
from benchmarks.results import append_json_lines, json_lines
from tsugiki.codecs.base import Options
from tsugiki.compress.budget import group_size_of
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

Row = dict[str, Any]


def measure(subject: Subject, options: Options, bias_bits: Sequence[int]) -> Iterator[Row]:
    """One row for each number of bias bits; 0: no bias."""
    lost, stored = {}, 0.0
    for pair in subject.deltas():
        change, stats = pair.change, subject.stats[pair.change.name]
        asked = Asked(change.name, pair.base, pair.tuned, 0.0, options["seed"], stats)
        found = packed("deltadq", asked, {**options, "bias_bits": 0})
        stored += found.bits
        lost[change] = (asked.delta - found.delta) @ stats.mean
        subject.put(change, pair.base, found)
    outputs = sum(len(bias) for bias in lost.values())
    for bits in bias_bits:
        for change, bias in lost.items():
            subject.put_bias(change, rounded(bias, bits) if bits else None)
        compared = subject.compare()
        yield {
            "bias_bits": bits,
            "bits": (stored + bits * outputs) / subject.parameters,
            "gold": compared[GOLD].kl.value,
            "held_out": compared[HELD_OUT].kl.value,
        }


def table(rows: Sequence[Row]) -> str:
    """A line for each fine-tune, setting and number of bias bits; means over seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["fine_tune"], row["alpha"], row["code_bits"], row["bias_bits"])
        groups.setdefault(key, []).append(row)
    lines = [
        "| fine-tune | kept | bias bits | b/p | KL gold (seeds: least, most) | KL held out "
        "| gold of the seed that held out chose | KL * b/p * 10^4 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(key, groups[key]) for key in sorted(groups)])


def _line(key: tuple[Any, ...], rows: Sequence[Row]) -> str:
    tuned, alpha, code_bits, bias_bits = key
    gold = [row["gold"] for row in rows]
    mean, bits = statistics.fmean(gold), statistics.fmean(row["bits"] for row in rows)
    chosen = min(rows, key=lambda row: row["held_out"])
    cells = [
        tuned,
        f"{code_bits} bit, 1 of {alpha}",
        str(bias_bits),
        f"{bits:.4f}",
        f"{mean:.4f} ({min(gold):.4f}, {max(gold):.4f}; {len(gold)})",
        f"{statistics.fmean(row['held_out'] for row in rows):.4f}",
        f"{chosen['gold']:.4f}",
        f"{mean * bits * 1e4:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo", help="Hugging Face directory, or 'demo'")
    parser.add_argument("--tuned", type=Path, required=True, help="the fine-tune's directory")
    parser.add_argument("--data", type=Path, required=True, help="test JSONL")
    parser.add_argument("--calibration", type=Path, required=True, help="training JSONL")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; is continued")
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--bits", type=int, default=1, help="of a kept entry")
    parser.add_argument("--bias-bits", type=int, nargs="+", default=[6, 4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=100, help="test examples")
    return parser.parse_args()


def main() -> None:
    """Measure the seeds that are missing, print the table of the whole file."""
    arguments = parse_arguments()
    name = arguments.tuned.resolve().name
    asked = {"fine_tune": name, "alpha": arguments.alpha, "code_bits": arguments.bits}
    known = {
        row["seed"]
        for row in json_lines(arguments.out)
        if all(row[k] == v for k, v in asked.items())
    }
    missing = [seed for seed in range(arguments.seeds) if seed not in known]
    if missing:
        base = resolve_base(arguments.base, default_cache_dir())
        texts = Texts(arguments.limit, held_out=CALIBRATION_EXAMPLES // 2)
        subject = Subject(base, arguments.tuned, arguments.data, arguments.calibration, texts)
    for seed in missing:
        group = group_size_of(arguments.alpha)
        options = {
            "alpha": arguments.alpha,
            "bits": arguments.bits,
            "group_size": group,
            "seed": seed,
        }
        rows = [
            {**asked, "seed": seed, "limit": arguments.limit, **row}
            for row in measure(subject, options, arguments.bias_bits)
        ]
        append_json_lines(arguments.out, rows)
        print(*rows, sep="\n", flush=True)
    print(table(json_lines(arguments.out)))


if __name__ == "__main__":
    main()
