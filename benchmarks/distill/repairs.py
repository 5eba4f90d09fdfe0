"""What repair brings back: each codec at two sizes, before and after, in as many bytes.

    python -m benchmarks.distill.repairs --base demo --tuned ft/banking77 \\
        --data banking77.train.jsonl --calibration banking77.calibration.jsonl \\
        --test banking77.test.jsonl --out repairs.jsonl

One JSON line for each file, gone on with where it was stopped. On a sketched or a lattice base the
files are of its own codec. `--device cuda --jobs 4` has four files share one GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill.score import score
from benchmarks.results import append_json_lines, device_name, json_lines, machine
from benchmarks.side_by_side import run_side_by_side
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model, model_of
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.config import DEVICES, default_cache_dir
from tsugiki.model.caldera import CalderaSettings
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import choose_device
from tsugiki.model.sketched import SketchSettings
from tsugiki.tune.job import RepairJob, run_repair
from tsugiki.tune.repair import RepairPlan

DTYPE = torch.bfloat16
CALIBRATED = ("deltadq", "bitdelta", "sketch", "caldera")


@dataclass(frozen=True, slots=True)
class Coarse:
    """A file to be repaired."""

    codec: str
    ratio: float | None = None  # honest, None: the codec's own
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For the table and for going on."""
        size = "" if self.ratio is None else f" {self.ratio:.0f}x"
        return f"{self.codec}{size}" + "".join(f" {k}={v}" for k, v in self.options.items())


FILES: Mapping[type, tuple[Coarse, ...]] = {  # by the form of the base
    type(None): (
        Coarse("deltadq", 256.0),
        Coarse("deltadq", 1000.0),
        Coarse("bitdelta"),
        Coarse("lora", options={"rank": 16}),
        Coarse("lora", options={"rank": 4}),
        Coarse("saten", options={"rank": 8, "density": 0.02}),
        Coarse("saten", options={"rank": 2, "density": 0.005}),
    ),
    SketchSettings: tuple(Coarse("sketch", options={"value_bits": bits}) for bits in (8, 4)),
    CalderaSettings: tuple(Coarse("caldera", options={"rank": rank}) for rank in (32, 8)),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What all files have in common."""

    base: Path
    tuned: Path
    data: Path
    calibration: Path
    tests: Sequence[Dialogue]
    steps: int
    device: torch.device

    def measure(self, coarse: Coarse, folder: Path) -> dict[str, Any]:
        """Compress, score, repair, score."""
        first, second = folder / "coarse.safetensors", folder / "repaired.safetensors"
        report = compress(self._job(coarse, first), Progress())
        before = self.scored(first)
        began = time.monotonic()
        job = RepairJob(
            first,
            str(self.base),
            self.tuned,
            self.data,
            second,
            default_cache_dir(),
            checkpoint_every=0,
            device=self.device,
        )
        run_repair(job, RepairPlan(steps=self.steps), Progress())
        return {
            "name": coarse.name,
            "steps": self.steps,
            "test_lines": len(self.tests),
            "honest_ratio": report.honest_ratio,
            "tensor_bytes": [self._tensor_bytes(file) for file in (first, second)],
            "file_bytes": [file.stat().st_size for file in (first, second)],
            "before": before,
            "repair_seconds": time.monotonic() - began,
            "after": self.scored(second),
            "device": device_name(self.device),
            "machine": machine(),
        }

    def scored(self, file: Path) -> dict[str, Any]:
        """The variant as a plain transformers model, beside its fine-tune."""
        variant = open_variant(file, str(self.base), default_cache_dir())
        model = model_of(variant.config(), variant.tensors(), DTYPE, self.device)
        return score(model, load_model(self.tuned, DTYPE, self.device), self.tests)

    def _job(self, coarse: Coarse, out: Path) -> CompressJob:
        form = open_checkpoint(self.base).form
        sketched = form.stored() if isinstance(form, SketchSettings) else {}
        return CompressJob(
            coarse.codec,
            self.base,
            self.tuned,
            out,
            {**coarse.options, **sketched},
            calibration=self.calibration if coarse.codec in CALIBRATED else None,
            target_ratio=coarse.ratio,
            cache_dir=default_cache_dir(),
            device=self.device,
        )

    def _tensor_bytes(self, file: Path) -> int:
        """Without the header, whose provenance says more after a repair."""
        modules = open_variant(file, str(self.base), default_cache_dir()).modules
        return sum(packed.nbytes for packed in modules.values())


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


def files_of(base: Path) -> tuple[Coarse, ...]:
    """What can be made on a base."""
    return FILES[type(open_checkpoint(base).form)]


def missing(args: argparse.Namespace, base: Path, tests: int) -> list[Coarse]:
    """What has no row yet."""
    rows = json_lines(args.out)
    known = {(row["name"], row["steps"], row["test_lines"]) for row in rows}
    asked = [coarse for coarse in files_of(base) if args.only in coarse.name]
    return [coarse for coarse in asked if (coarse.name, args.steps, tests) not in known]


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", required=True, help="as for `tsugiki repair --base`")
    for flag in ("--tuned", "--data", "--calibration", "--test", "--out"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    parser.add_argument("--only", default="", help="files with this in their name")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="files side by side")
    return parser.parse_args()


def main() -> int:
    """Measure what is missing, print the table; how many failed."""
    args = parse_arguments()
    device, failed = choose_device(args.device), list[str]()
    base = resolve_base(args.base, default_cache_dir())
    dialogues = read_dialogues(args.test, load_tokenizer(args.tuned), limit=args.test_lines or None)
    tests = list(dialogues)
    wanted = missing(args, base, len(tests))
    if args.jobs > 1:
        again = [sys.executable, "-m", "benchmarks.distill.repairs", *sys.argv[1:], "--jobs", "1"]
        names = [coarse.name for coarse in wanted]
        failed = run_side_by_side({name: [*again, "--only", name] for name in names}, args.jobs)
    else:
        paths = (base, args.tuned, args.data, args.calibration)
        bench = Bench(*paths, tests, args.steps, device)
        for coarse in wanted:
            with tempfile.TemporaryDirectory() as folder:
                append_json_lines(args.out, [bench.measure(coarse, Path(folder))])
    print(table(json_lines(args.out)))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
