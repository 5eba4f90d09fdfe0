"""What repair brings back: each codec at two sizes, before and after, in as many bytes.

    python -m benchmarks.distill.repairs --base demo --tuned ft/banking77 \\
        --data banking77.train.jsonl --calibration banking77.calibration.jsonl \\
        --test banking77.test.jsonl --out repairs.jsonl

One JSON line for each file, gone on with where it was stopped.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill.score import score
from benchmarks.results import append_json_lines, json_lines, machine
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model, model_of
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.tune.job import RepairJob, run_repair
from tsugiki.tune.repair import RepairPlan

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Coarse:
    """A file to be repaired."""

    codec: str
    ratio: float | None = None  # honest, None: the codec's own
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the table and for going on."""
        size = "" if self.ratio is None else f" {self.ratio:.0f}x"
        return f"{self.codec}{size}" + "".join(f" {k}={v}" for k, v in self.options.items())


FILES = (
    Coarse("deltadq", 128.0),
    Coarse("deltadq", 400.0),
    Coarse("bitdelta"),
    Coarse("lora", options={"rank": 16}),
    Coarse("lora", options={"rank": 4}),
)


def measure(
    coarse: Coarse, args: argparse.Namespace, tests: list[Dialogue], folder: Path
) -> dict[str, Any]:
    """Compress, score, repair, score."""
    base = resolve_base(args.base, default_cache_dir())
    first, second = folder / "coarse.safetensors", folder / "repaired.safetensors"
    calibration = None if coarse.codec == "lora" else args.calibration
    job = CompressJob(
        coarse.codec,
        base,
        args.tuned,
        first,
        coarse.options,
        calibration=calibration,
        target_ratio=coarse.ratio,
        cache_dir=default_cache_dir(),
    )
    report = compress(job, Progress())
    before = scored(first, args, tests)
    began = time.process_time()
    repair_job = RepairJob(
        first, args.base, args.tuned, args.data, second, default_cache_dir(), checkpoint_every=0
    )
    run_repair(repair_job, RepairPlan(steps=args.steps), Progress())
    return {
        "name": coarse.name,
        "steps": args.steps,
        "test_lines": len(tests),
        "honest_ratio": report.honest_ratio,
        "tensor_bytes": [_tensor_bytes(file, args.base) for file in (first, second)],
        "file_bytes": [file.stat().st_size for file in (first, second)],
        "before": before,
        "after": scored(second, args, tests),
        "cpu_seconds": time.process_time() - began,
        "machine": machine(),
    }


def _tensor_bytes(file: Path, base: str) -> int:
    """Without the header, whose provenance says more after a repair."""
    modules = open_variant(file, base, default_cache_dir()).modules
    return sum(packed.nbytes for packed in modules.values())


def scored(file: Path, args: argparse.Namespace, tests: list[Dialogue]) -> dict[str, Any]:
    """The variant as a plain transformers model, beside its fine-tune."""
    variant = open_variant(file, args.base, default_cache_dir())
    model = model_of(variant.config(), variant.tensors(), DTYPE)
    return score(model, load_model(args.tuned, DTYPE), tests)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| file | honest ratio | steps | KL before | KL after | exact match before | after |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        kl, exact = (
            [row[when][key]["value"] for when in ("before", "after")] for key in ("kl", "accuracy")
        )
        cells = [row["name"], f"{row['honest_ratio']:.0f}x", str(row["steps"])]
        cells += [f"{value:.4f}" for value in kl] + [f"{value:.1%}" for value in exact]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="as for `tsugiki repair --base`")
    for flag in ("--tuned", "--data", "--calibration", "--test", "--out"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    parser.add_argument("--only", default="", help="codecs with this in their name")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, print the table."""
    args = parse_arguments()
    tokenizer = load_tokenizer(args.tuned)
    tests = list(read_dialogues(args.test, tokenizer, limit=args.test_lines or None))
    rows = json_lines(args.out)
    known = {(row["name"], row["steps"], row["test_lines"]) for row in rows}
    for coarse in FILES:
        if args.only in coarse.name and (coarse.name, args.steps, len(tests)) not in known:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(coarse, args, tests, Path(folder)))
            append_json_lines(args.out, rows[-1:])
    print(table(rows))


if __name__ == "__main__":
    main()
