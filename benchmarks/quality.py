"""What does compression cost? Base, fine-tune and compressed files on a task's test set.

Every compressed file is decompressed by the tsugiki command line into an ordinary Hugging Face
directory and scored by `examples/evaluate.py`, a plain transformers program: the score does not
depend on the server. Beside the task's own score it records KL(fine-tune || variant) per answer
token, which tells files apart when their accuracies lie within each other's intervals.

    python -m benchmarks.quality --base BASE --task banking77 --tuned ft/banking77 \\
        --test data/banking77.test.jsonl --scores exact --files examples/variants/banking77.*
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.results import save

EVALUATE = Path(__file__).parent.parent / "examples" / "evaluate.py"


def linear_bytes(tuned: Path) -> int:
    """Bytes of the fine-tune's linears in bfloat16: what a delta file stands for.

    Embeddings are left out, though a whole fine-tune holds them too: they are not compressed,
    they are the base's, and counting them would flatter the ratio.
    """
    total = 0
    for file in tuned.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                shape = handle.get_slice(name).get_shape()
                if len(shape) == 2 and "embed_tokens" not in name and "lm_head" not in name:
                    total += 2 * shape[0] * shape[1]
    return total


def evaluate(model: Path, score: str, arguments: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """Run examples/evaluate.py in a process of its own, so that no model outlives its score."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "score.json"
        command = [sys.executable, str(EVALUATE), "--model", str(model), "--score", score]
        command += ["--data", str(arguments.test), "--limit", str(arguments.limit)]
        command += ["--threads", str(arguments.threads), "--json", str(out)]
        subprocess.run([*command, *extra], check=True)
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    # replies are for reading, not for a table
    result.pop("samples", None)
    return result


def score_file(file: Path, score: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Decompress one file, score it, and put its size beside the score."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        command = [sys.executable, "-m", "tsugiki", "decompress", str(file)]
        subprocess.run([*command, "--base", arguments.base, "--out", str(model)], check=True)
        result = evaluate(model, score, arguments)
        if score == "exact":  # the reference doubles the work: a part of the lines will do
            lines = str(arguments.kl_lines)
            reference = ["--reference", str(arguments.tuned), "--limit", lines]
            result["kl_per_token"] = evaluate(model, score, arguments, *reference)["kl_per_token"]
    size = file.stat().st_size
    return {**result, "file_bytes": size, "ratio": linear_bytes(arguments.tuned) / size}


def versus(tuned: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """The change of the share against the fine-tune on the very same items, with a 95 % interval.

    Items that both get right or both get wrong say nothing: the interval of a paired difference
    is far narrower than the two intervals beside each other suggest.
    """
    lost = len(set(row["wrong"]) - set(tuned["wrong"]))
    gained = len(set(tuned["wrong"]) - set(row["wrong"]))
    change, total = gained - lost, row["total"]
    spread = 1.96 * math.sqrt(lost + gained - change**2 / total) / total
    return {
        "lost": lost,
        "gained": gained,
        "change": change / total,
        "change_low": change / total - spread,
        "change_high": change / total + spread,
    }


def table_row(name: str, row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    interval = f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
    size = f"{row['file_bytes'] / 1e6:.2f} MB | {row['ratio']:.0f}x" if "ratio" in row else "- | -"
    kl = f"{row['kl_per_token']:.4f}" if "kl_per_token" in row else "-"
    change = "-"
    if "change" in row:
        points = [f"{100 * row[key]:+.1f}" for key in ("change", "change_low", "change_high")]
        change = f"{points[0]} [{points[1]}, {points[2]}]"
    return f"| {name} | {row['score']} | {size} | {interval} | {change} | {kl} |"


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="as for `tsugiki decompress --base`")
    parser.add_argument("--base-dir", type=Path, help="Hugging Face directory, to score the base")
    parser.add_argument("--task", required=True, help="names the result: quality-TASK.json")
    parser.add_argument("--tuned", type=Path, required=True, help="the fine-tune's directory")
    parser.add_argument("--test", type=Path, required=True, help="JSONL")
    parser.add_argument("--scores", nargs="+", default=["exact"], help="see evaluate.py")
    parser.add_argument("--files", type=Path, nargs="*", default=[], help="compressed variants")
    parser.add_argument("--limit", type=int, default=0, help="first N test lines only")
    parser.add_argument("--kl-lines", type=int, default=500, help="test lines of the KL; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Score everything, print a Markdown table, write benchmarks/results/quality-TASK.json."""
    arguments = parse_arguments()
    rows: list[tuple[str, dict[str, Any]]] = []
    for score in arguments.scores:
        if arguments.base_dir:
            rows.append(("base", evaluate(arguments.base_dir, score, arguments)))
        tuned = evaluate(arguments.tuned, score, arguments)
        rows.append(("fine-tune", tuned))
        for file in arguments.files:
            row = score_file(file, score, arguments)
            rows.append((file.name, {**row, **versus(tuned, row)}))
    head = ("model", "score", "file", "linears / file", "share [95 % interval]")
    print("| " + " | ".join((*head, "points against the fine-tune, paired", "KL per token")) + " |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows:
        print(table_row(name, row))
        row.pop("wrong")  # the counts of lost and gained items say what they tell
    print(save(f"quality-{arguments.task}", [{"name": name, **row} for name, row in rows]))


if __name__ == "__main__":
    main()
