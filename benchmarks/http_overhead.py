"""What does HTTP cost beside the bare engine?

Without --profile: 16 requests at once through HTTP, streamed and not, beside the same requests on
the engine client in a process of its own, interleaved A B B A. Both engines are alone while they
run. Clients of the server are a process whose cost is printed. So is, for each step, how long the
server's engine thread stood still: waiting for the interpreter, which the event loop held, and for
a core, which somebody else had. Run it alone on the machine.

With --profile: the server's own process with a model that computes nothing (scripted_server.py),
in steps of --step-ms. CPU microseconds per token of each thread are exact (the kernel's); how those
of the event loop divide over stages is cProfile's word, from a second run.

    python -m benchmarks.http_overhead [--profile]
"""

import argparse
import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.http_load import Load, Outcome
from benchmarks.results import median_interval, save
from benchmarks.server import server_process

STAGES = {  # where a function's file is -> what its time is spent on
    "tsugiki/engine": "engine client",
    "tsugiki/text": "detokenising",
    "tsugiki/api": "answers",
    "starlette": "framework",
    "fastapi": "framework",
    "pydantic": "framework",
    "anyio": "framework",
    "uvicorn": "HTTP protocol",
    "prometheus_client": "metrics",
    "logging": "log",
    "json": "JSON",
}
MICRO = 1e6


def through_http(url: str, load: Load) -> Outcome:
    """A load from a client process."""
    command = [sys.executable, "-m", "benchmarks.http_load", url, *_flags(load)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Outcome(**json.loads(answer))


def _flags(load: Load) -> list[str]:
    values = asdict(load)
    stream = ["--stream"] if values.pop("stream") else []
    return [f"--{name}={value}" for name, value in values.items()] + stream


@contextmanager
def bare_engine(
    base: str, variants: Path, log: Path
) -> Iterator[tuple[str, Callable[[Load], Outcome]]]:
    """The base's id, and what runs a load on the bare engine."""
    command = [sys.executable, "-m", "benchmarks.bare_engine", "--base", base]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, "--variants", str(variants)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        questions, answers = process.stdin, process.stdout
        if questions is None or answers is None or not (first := answers.readline()):
            raise RuntimeError(f"the bare engine did not start: {log.read_text()[-4000:]}")

        def run(load: Load) -> Outcome:
            print(json.dumps(asdict(load)), file=questions, flush=True)
            return Outcome(**json.loads(answers.readline()))

        yield json.loads(first)["model"], run
        questions.close()


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """HTTP / bare engine, streamed and not."""
    variants = folder / "variants"
    results: dict[str, Any] = {}
    with (
        server_process(args.base, variants, folder / "server.log") as (url, process),
        bare_engine(args.base, folder / "none", folder / "bare.log") as (model, bare),
    ):
        print(f"{'A / B':<32}{'A tok/s':>9}{'B tok/s':>9}{'A / B':>8}  95 % interval")
        for stream in (False, True):
            load = Load(model, args.concurrency, args.rounds, stream=stream)
            title = f"HTTP, {'streamed' if stream else 'whole'} / bare engine"
            results[title] = row = interleaved(url, bare, load, args.pairs)
            load = replace(load, seed=2 * (args.pairs + 1) + stream)  # no prompt that is cached
            stood_still = engine_waits(process, load.concurrency, partial(through_http, url, load))
            row |= {f"engine waits for {what}, ms a step": ms for what, ms in stood_still.items()}
            show_comparison(title, row, stood_still)
    return results


def show_comparison(title: str, row: dict[str, Any], stood_still: dict[str, float]) -> None:
    """One line of the table."""
    waits = " and ".join(f"{ms:.2f} ms for {what}" for what, ms in stood_still.items())
    print(
        f"{title:<32}{row['http']:>9.1f}{row['bare']:>9.1f}{row['ratio']:>8.3f}  "
        f"[{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]   the client took "
        f"{row['client us per token']:.1f} us/token; the engine waits {waits} a step",
        flush=True,
    )


def engine_waits(process: int, slots: int, run: Callable[[], Outcome]) -> dict[str, float]:
    """Milliseconds of a decode step's worth of tokens that the engine thread does not compute.

    It never sleeps while it has work: what is neither processor time nor waiting for a processor
    (both the kernel's) is waiting for the interpreter.
    """
    before = engine_thread(process)
    outcome = run()
    computed, waited = (
        now - then for now, then in zip(engine_thread(process), before, strict=True)
    )
    interpreter = max(0.0, outcome.seconds - computed - waited)
    steps = outcome.tokens / slots
    return {"the interpreter": 1000 * interpreter / steps, "a core": 1000 * waited / steps}


def engine_thread(process: int) -> tuple[float, float]:
    """Seconds that the engine thread computed, and that it waited for a core, so far. It is the one
    that has computed most, but for the event loop's."""
    threads = [
        [int(nanoseconds) / 1e9 for nanoseconds in (task / "schedstat").read_text().split()[:2]]
        for task in Path(f"/proc/{process}/task").iterdir()
        if task.name != str(process)
    ]
    computed, waited = max(threads)
    return computed, waited


def interleaved(
    url: str, bare: Callable[[Load], Outcome], load: Load, pairs: int
) -> dict[str, Any]:
    """A B B A ..., after one of each to warm up; every pair has prompts of its own."""
    sides: list[Callable[[Load], Outcome]] = [partial(through_http, url), bare]
    measured = []
    for pair in range(-1, pairs):
        # not negative: random.Random takes -1 for 1
        fresh = replace(load, seed=2 * (pair + 1) + load.stream)
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        taken = {side: sides[side](fresh) for side in order}
        if pair >= 0:
            measured.append((taken[0], taken[1]))
    ratio = median_interval([http.speed / engine.speed for http, engine in measured])
    client = median_interval([h.client_seconds / h.tokens * MICRO for h, _ in measured])
    return {
        "http": median_interval([http.speed for http, _ in measured])[0],
        "bare": median_interval([engine.speed for _, engine in measured])[0],
        "ratio": ratio[0],
        "interval": ratio[1:],
        "client us per token": client[0],
        "pairs": [(http.speed, engine.speed) for http, engine in measured],
    }


def profile(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """CPU microseconds per token of a server without a model, by thread and by stage."""
    results: dict[str, Any] = {}
    for stream in (False, True):
        load = Load("base", args.concurrency, args.rounds, stream=stream)
        exact = threads_cost(args, folder, load)
        seconds = stages(profiled(args, folder, load))
        scale = exact["event loop"] / sum(seconds.values())
        split = {stage: spent * scale for stage, spent in seconds.most_common()}
        title = "streamed" if stream else "whole"
        results[title] = {"threads": exact, "event loop": split}
        show_profile(title, exact, split)
    return results


def show_profile(title: str, exact: dict[str, float], split: dict[str, float]) -> None:
    """A block of the table."""
    print(f"\n{title}: CPU us per token")
    for name, cost in exact.items():
        print(f"  {name:<28}{cost:>8.1f}")
        for stage, part in split.items() if name == "event loop" else ():
            print(f"      {stage:<24}{part:>8.1f}")
    sys.stdout.flush()


def threads_cost(args: argparse.Namespace, folder: Path, load: Load) -> dict[str, float]:
    """Microseconds per token of the server's threads and of the client; lowest of some loads."""
    with scripted(args, folder) as (url, process):
        through_http(url, load)
        costs = []
        for _ in range(args.pairs):
            before = cpu_seconds(process)
            outcome = through_http(url, load)
            after = cpu_seconds(process)
            spent = {name: after[name] - before[name] for name in after}
            spent["client, in its own process"] = outcome.client_seconds
            costs.append({name: s / load.tokens * MICRO for name, s in spent.items()})
    return {name: min(cost[name] for cost in costs) for name in costs[0]}


def cpu_seconds(process: int) -> dict[str, float]:
    """Processor time so far of the event loop (the main thread) and of all others."""
    seconds = {"event loop": 0.0, "engine thread and others": 0.0}
    for task in Path(f"/proc/{process}/task").iterdir():
        name = "event loop" if task.name == str(process) else "engine thread and others"
        seconds[name] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def profiled(args: argparse.Namespace, folder: Path, load: Load) -> pstats.Stats:
    """cProfile's data of the event loop under a load."""
    data = folder / "profile"
    with scripted(args, folder, "--profile", str(data)) as (url, process):
        through_http(url, load)
        os.kill(process, signal.SIGUSR1)
        through_http(url, load)
    return pstats.Stats(str(data))


@contextmanager
def scripted(args: argparse.Namespace, folder: Path, *flags: str) -> Iterator[tuple[str, int]]:
    """A server whose model computes nothing: its URL and process id."""
    own = ["--step-ms", str(args.step_ms), "--served-model-name", "base", *flags]
    program = ["benchmarks.scripted_server"]
    with server_process(
        args.base, folder / "none", folder / "server.log", own, program=program
    ) as server:
        yield server


def stages(stats: pstats.Stats) -> Counter[str]:
    """Seconds per stage: a function's own time by its file, a built-in's by its caller's file.

    uvloop and the writes that it makes are compiled: what they take counts to whoever called them.
    """
    seconds: Counter[str] = Counter()
    data: dict[Any, Any] = stats.stats  # type: ignore[attr-defined]  # pstats has no accessor
    for (file, _, _), (_, _, own, _, callers) in data.items():
        if file != "~" or not callers:
            seconds[_stage(file)] += own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():
            seconds[_stage(caller)] += part
    return seconds


def _stage(file: str) -> str:
    path = file.replace("\\", "/")
    return next((stage for part, stage in STAGES.items() if f"/{part}/" in path), "event loop")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=40.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for empty in ("variants", "none"):
            (folder / empty).mkdir()
        if args.profile:
            save("http_profile", profile(args, folder))
        else:
            save("http_overhead", compare(args, folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
