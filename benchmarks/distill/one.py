"""One run, in a process of its own, so that its peak of memory is its own: adds its row.

Owns: the three ways of training, what they cost, and the score. Does not know: which runs there
are.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill.models import training_of
from benchmarks.distill.operations import training_operations
from benchmarks.distill.runs import Run, append
from benchmarks.distill.score import score
from benchmarks.results import device_name, json_lines, machine
from tsugiki.compress.dialogues import Dialogue, read_dialogues
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.distill.batches import Batch, shared_beginning, stream
from tsugiki.distill.lora_student import LoraSettings, attach
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.distill.teacher import LiveTeacher, Teacher, View
from tsugiki.distill.teacher_cache import TeacherCache
from tsugiki.distill.trainer import Record, TrainingPlan, train

BATCH_TOKENS = 1000
TOP_K = 32
DTYPE = torch.bfloat16
CACHE = "cache"  # in place of a run: ask the teacher, for the runs that have it cached


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common."""

    teacher: Path
    student: Path
    data: Path
    test: Path
    teacher_cache: Path
    device: torch.device

    @property
    def width(self) -> int:
        """Tokens that both models have."""
        return min(open_base(path).architecture.vocab_size for path in (self.student, self.teacher))

    def load(self, directory: Path) -> Any:
        """A model of it."""
        return load_model(directory, DTYPE, self.device)

    def cache(self, dialogues: list[Dialogue]) -> TeacherCache:
        """Of this teacher on this data."""
        about = {"teacher": str(self.teacher), "top_k": TOP_K, "dtype": str(DTYPE)}
        return TeacherCache(self.teacher_cache, dialogues, about)


def counted(batches: Iterator[Batch], tokens: list[int]) -> Iterator[Batch]:
    """The batches, noting how many tokens went through the model."""
    for batch in batches:
        tokens.append(batch.tokens)
        yield batch


def student_of(run: Run, setting: Setting) -> Any:
    """The model to be trained. A branch is drawn on the CPU: it is the same one everywhere."""
    model = load_model(setting.student, DTYPE)
    if run.method != "full-kd":
        model = attach(model, LoraSettings(run.rank), run.seed, checkpointing=False).model
    return model.to(setting.device).train()


def teacher_of(run: Run, setting: Setting, dialogues: list[Dialogue]) -> Teacher | None:
    """None where nothing is distilled; cached, its expectations are there already."""
    if run.method == "sft-lora":
        return None
    if run.cached:
        return setting.cache(dialogues).open()
    return LiveTeacher(setting.load(setting.teacher), View(setting.width))


def trained(run: Run, setting: Setting, dialogues: list[Dialogue]) -> tuple[Any, dict[str, Any]]:
    """A student after its steps, and what they cost."""
    teacher = teacher_of(run, setting, dialogues)
    model = student_of(run, setting)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alpha = 0.0 if run.method == "sft-lora" else run.alpha
    objective = NeoObjective(model, teacher, Mixture(alpha, width=setting.width))
    tokens: list[int] = []
    shared = shared_beginning(dialogues)
    batches = counted(stream(dialogues, BATCH_TOKENS, run.seed, shared), tokens)
    group = ParameterGroup(parameters, run.learning_rate)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.jsonl"
        train([group], objective, batches, TrainingPlan(run.steps), Progress(), Record(log))
        steps = [line["seconds"] for line in json_lines(log)]
    live = teacher.model if isinstance(teacher, LiveTeacher) else None
    return model, {
        "cpu_seconds_per_step": (time.process_time() - began) / run.steps,
        "seconds_per_step": statistics.median(steps),
        **peaks(setting.device),
        "operations_per_token": training_operations(model, live),
        "trained_parameters": sum(p.numel() for p in parameters.values()),
        "tokens": sum(tokens),
        "learning_rate": run.learning_rate,
    }


def peaks(device: torch.device) -> dict[str, int]:
    """Bytes that this process, and torch on a GPU, held at most."""
    found = {"peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        found["peak_device"] = torch.cuda.max_memory_allocated(device)
    return found


def result_of(run: Run, setting: Setting) -> dict[str, Any]:
    """What the run costs and how good its student is."""
    tokenizer = load_tokenizer(setting.student)
    cost: dict[str, Any] = {}
    if run.method == "teacher":
        model, cost["training"] = setting.load(setting.teacher), training_of(setting.teacher)
    elif run.method == "untouched":
        model = setting.load(setting.student)
    else:
        model, cost = trained(run, setting, list(read_dialogues(setting.data, tokenizer)))
    tests = list(read_dialogues(setting.test, tokenizer, limit=run.test_lines or None))
    return {**cost, **score(model.eval(), setting.load(setting.teacher), tests)}


def fill_cache(setting: Setting) -> None:
    """Ask the teacher about all the data."""
    dialogues = list(read_dialogues(setting.data, load_tokenizer(setting.student)))
    view = View(setting.width, TOP_K)
    cache = setting.cache(dialogues)
    shared = shared_beginning(dialogues)
    cache.fill(lambda: LiveTeacher(setting.load(setting.teacher), view), shared, Progress())


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help=f"JSON of a Run; {CACHE!r}: fill the cache")
    for flag in ("--teacher", "--student", "--data", "--test", "--out", "--teacher-cache"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="how many run beside it: for the row")
    return parser.parse_args()


def main() -> None:
    """Train, score, add the row."""
    args = parse_arguments()
    device = torch.device(args.device)
    paths = (args.teacher, args.student, args.data, args.test, args.teacher_cache)
    setting = Setting(*paths, device)
    if args.run == CACHE:
        fill_cache(setting)
        return
    run = Run(**json.loads(args.run))
    result = result_of(run, setting)
    beside = {"device": device_name(device), "jobs": args.jobs, "machine": machine()}
    append(args.out, run, {**result, **beside})


if __name__ == "__main__":
    main()
