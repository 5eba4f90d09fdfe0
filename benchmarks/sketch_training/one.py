"""One run: a student is trained, stored, and scored as it is stored.

Owns: the four ways of training and what they cost. Does not know: which runs there are.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import append_json_lines, machine
from benchmarks.sketch_training.runs import Run
from tsugiki.codecs.sketch import changes_of
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.evaluate import Evaluation, Sums, batch_sums, summary
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.config import default_cache_dir
from tsugiki.distill.batches import batched, shared_beginning, split, stream
from tsugiki.distill.lora_student import LoraSettings, attach
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.distill.trainer import Record, TrainingPlan, train
from tsugiki.model.demo_base import resolve_base
from tsugiki.tune.sketch import SketchStudent, make_student

DTYPE = torch.bfloat16
VALUE_BITS = 8
HELD_OUT = 256  # dialogues of the training data, to choose the rate by
BATCH_TOKENS = 4000  # of scoring


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained, and what it takes on disk."""

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    sketch: SketchStudent | None = None

    def stored(self) -> int:
        """Bytes of what was trained, in 16 bits; a sketch is replaced by what is stored of it."""
        if self.sketch is None:
            return 2 * sum(p.numel() for p in self.parameters.values())
        self.model.to("cpu")
        packed = self.sketch.packed()
        with torch.no_grad():
            for name, line in self.sketch.linears.items():
                change = changes_of(packed[name]) if name in packed else torch.zeros(())
                line.codebooks.copy_(line.stored + change.view_as(line.stored))
        return sum(module.nbytes for module in packed.values())


def student_of(run: Run, base: Path) -> Student:
    """As it is before training."""
    if run.method == "sketch":
        found = make_student(open_base(base), DTYPE, VALUE_BITS)
        found.model.to(run.device)
        return Student(found.model, dict(found.group(run.rate).parameters), found)
    model = load_model(base, DTYPE).to(run.device)
    if run.method == "untouched":
        return Student(model, {})
    if run.method == "full":
        return Student(model.train(), dict(model.named_parameters()))
    branch = attach(model, LoraSettings(run.rank), run.seed, checkpointing=False)
    return Student(branch.model.to(run.device), dict(branch.group(run.rate).parameters))


def evaluated(model: Any, dialogues: Sequence[Dialogue]) -> Evaluation:
    """Exact match and perplexity."""
    shared = shared_beginning(dialogues)
    rows: list[Sums] = []
    for batch in batched(dialogues, BATCH_TOKENS, shared):
        logs = batch.known_logits(model).log_softmax(-1).cpu()
        rows += batch_sums(batch.dialogues, {"tuned": logs, "variant": logs})
    return summary(rows, ("tuned", "variant"))


def measure(run: Run, data: Path, test: Path, limit: int | None) -> dict[str, Any]:
    """Train, store, score."""
    base = resolve_base(run.base, default_cache_dir())
    tokenizer = load_tokenizer(base)
    training, held_out = split(list(read_dialogues(data, tokenizer)), HELD_OUT, 0)
    student = student_of(run, base)
    cost = trained(run, student, training) if run.steps else {}
    nbytes = student.stored()
    model = student.model.to(run.device).eval()
    tests = list(read_dialogues(test, tokenizer, limit=limit))
    scores, held = evaluated(model, tests), evaluated(model, held_out)
    return {
        **cost,
        "bytes": nbytes,
        "parameters": sum(p.numel() for p in student.parameters.values()),
        "held_out_loss": float(torch.tensor(held.perplexity["variant"].value).log()),
        "accuracy": asdict(scores.accuracy["variant"]),
        "examples": scores.examples,
        "machine": machine(),
    }


def trained(run: Run, student: Student, training: Sequence[Dialogue]) -> dict[str, Any]:
    """Seconds of a step, and the peak of memory until now."""
    objective = NeoObjective(student.model, None, Mixture(0.0))
    shared = shared_beginning(training)
    batches = stream(training, run.batch_tokens, run.seed, shared)
    plan = TrainingPlan(run.steps, betas=(0.9, 0.999), decay="linear")
    began = time.monotonic()
    group = ParameterGroup(student.parameters, run.rate)
    train([group], objective, batches, plan, Progress(), Record())
    if run.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_memory": peak, "seconds_per_step": (time.monotonic() - began) / run.steps}


def main() -> None:
    """Measure, add the row to the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="JSON of a Run")
    for flag in ("--data", "--test", "--rows"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--test-lines", type=int, default=0, help="0: all")
    args = parser.parse_args()
    run = Run(**json.loads(args.run))
    result = measure(run, args.data, args.test, args.test_lines or None)
    append_json_lines(args.rows, [{"run": asdict(run), "result": result}])


if __name__ == "__main__":
    main()
