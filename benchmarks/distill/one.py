"""One run, in a process of its own, so that its peak of memory is its own: prints its result.

Owns: the three ways of training and the score. Does not know: which runs there are.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill.operations import training_operations
from benchmarks.distill.runs import Run
from benchmarks.distill.score import score
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


def counted(batches: Iterator[Batch], tokens: list[int]) -> Iterator[Batch]:
    """The batches, noting how many tokens went through the model."""
    for batch in batches:
        tokens.append(batch.tokens)
        yield batch


def attached(run: Run, model: Any) -> tuple[Any, dict[str, Any]]:
    """The model to be trained, and which of its parameters."""
    if run.method == "full-kd":
        return model.train(), dict(model.named_parameters())
    student = attach(model, LoraSettings(run.rank), run.seed, checkpointing=False)
    return student.model, dict(student.group(1.0).parameters)


def teacher_of(run: Run, args: argparse.Namespace, dialogues: list[Dialogue]) -> Teacher | None:
    """None where nothing is distilled; cached, its expectations are there already."""
    if run.method == "sft-lora":
        return None
    if run.cached:
        return cache_of(args, dialogues).open()
    return LiveTeacher(load_model(args.teacher, DTYPE), View(width_of(args)))


def width_of(args: argparse.Namespace) -> int:
    """Tokens that both models have."""
    return min(open_base(path).architecture.vocab_size for path in (args.student, args.teacher))


def cache_of(args: argparse.Namespace, dialogues: list[Dialogue]) -> TeacherCache:
    """Of this teacher on this data."""
    about = {"teacher": str(args.teacher), "top_k": TOP_K, "dtype": str(DTYPE)}
    return TeacherCache(args.teacher_cache, dialogues, about)


def trained(run: Run, args: argparse.Namespace, dialogues: list[Dialogue]) -> tuple[Any, Any]:
    """A student after its steps, and what they cost."""
    teacher = teacher_of(run, args, dialogues)
    model, parameters = attached(run, load_model(args.student, DTYPE))
    alpha = {"sft-lora": 0.0, "full-kd": run.alpha, "neo": run.alpha}[run.method]
    objective = NeoObjective(model, teacher, Mixture(alpha, width=width_of(args)))
    tokens: list[int] = []
    shared = shared_beginning(dialogues)
    batches = counted(stream(dialogues, BATCH_TOKENS, run.seed, shared), tokens)
    group = ParameterGroup(parameters, run.learning_rate)
    began = time.process_time()
    train([group], objective, batches, TrainingPlan(run.steps), Progress(), Record())
    seconds = time.process_time() - began
    live = teacher.model if isinstance(teacher, LiveTeacher) else None
    return model, {
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cpu_seconds_per_step": seconds / run.steps,
        "operations_per_token": training_operations(model, live),
        "trained_parameters": sum(p.numel() for p in parameters.values()),
        "tokens": sum(tokens),
        "learning_rate": run.learning_rate,
    }


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", required=True, help="JSON of a Run; 'cache': fill the cache")
    for flag in ("--teacher", "--student", "--data", "--test", "--out"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--teacher-cache", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args()


def main() -> None:
    """Train, score, write."""
    args = parse_arguments()
    tokenizer = load_tokenizer(args.student)
    dialogues = list(read_dialogues(args.data, tokenizer))
    if args.run == "cache":
        view = View(width_of(args), TOP_K)
        shared = shared_beginning(dialogues)
        cache = cache_of(args, dialogues)
        cache.fill(lambda: LiveTeacher(load_model(args.teacher, DTYPE), view), shared, Progress())
        return
    run = Run(**json.loads(args.run))
    cost: dict[str, Any] = {}
    if run.method == "untouched":
        model = load_model(args.student, DTYPE)
    else:
        model, cost = trained(run, args, dialogues)
    tests = list(read_dialogues(args.test, tokenizer, limit=run.test_lines or None))
    scores = score(model.eval(), load_model(args.teacher, DTYPE), tests)
    args.out.write_text(json.dumps({**cost, **scores}), encoding="utf-8")


if __name__ == "__main__":
    main()
