"""Where does the time of a step go?

The whole engine in this process, without HTTP, under a closed loop: 128 random prompt tokens + 64
new ones. Once as it is, which gives the step and its stages; once with every kernel timed by
itself (timed_kernels.py), which divides the forward pass. The HTTP column is what the same load
takes longer through a server, per step. Milliseconds, medians over steps. At 8 and 16 every slot
has a variant of its own as far as DIR holds so many (`benchmarks.peers --work` makes some). The
column Python is what of a step is outside the recorded pass, whose one call into C++ lets go of the
interpreter: the most that the engine thread holds it. Run it alone on the machine.

    python -m benchmarks.step_profile --variants DIR [--no-http]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import httpx

from benchmarks.http_load import Load, Outcome
from benchmarks.http_overhead import through_http
from benchmarks.results import save
from benchmarks.served import placed
from benchmarks.server import server_process
from benchmarks.timed_kernels import LM_HEAD, OTHER, PASS, TimedKernels, TimedPasses
from tsugiki.codecs.base import ResidentVariant
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki.engine.client import EngineClient, GenerationSpec
from tsugiki.engine.model_runner import ChunkResult, TorchModelRunner
from tsugiki.engine.request import SamplingParams
from tsugiki.engine.schedule import Chunk
from tsugiki.engine.sizing import Sizes
from tsugiki.model.decoder import Decoder
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import BaseModel

CONCURRENCIES = (1, 8, 16)
VARIANTS = 8
KERNELS = ("linears", "variants", "attention", OTHER, LM_HEAD)
COLUMNS = (
    *KERNELS,
    "around",
    "sampling",
    "batching",
    "schedule, book",
    "Python",
    "HTTP",
    "step",
)
_numbers = count()


@dataclass(slots=True)
class Stages:
    """Seconds by stage, since `take` was called last."""

    seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a stage."""

        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[stage] += time.perf_counter() - begin

        return call

    def take(self) -> dict[str, float]:
        """What has come together."""
        found = dict(self.seconds)
        self.seconds.clear()
        return found


class ProfiledRunner:
    """A ModelRunner that keeps what each step took; with `divide`, operation by operation."""

    def __init__(self, base: BaseModel, sizes: Sizes) -> None:
        cache = allocate_kv_cache(
            base.architecture, sizes.num_blocks, sizes.block_size, base.dtype, base.device
        )
        self.divide = False
        self.steps: list[tuple[list[int], dict[str, float]]] = []  # chunks' tokens, seconds
        self._stages = Stages()
        self._kernels = TimedKernels(base.decoder.kernels, base.architecture.vocab_size)
        timed: Any = self._kernels  # delegates what it does not have itself
        passes: Any = TimedPasses(base.decoder.kernels, self._kernels.seconds)
        decoders = [
            Decoder(base.architecture, base.decoder.weights, kernels) for kernels in (passes, timed)
        ]
        self._runners = [TorchModelRunner(decoder, cache) for decoder in decoders]
        for runner, decoder in zip(self._runners, decoders, strict=True):
            decoder.forward = self._stages.timed("forward", decoder.forward)  # type: ignore[method-assign]
            runner.sampler.sample = self._stages.timed("sampling", runner.sampler.sample)  # type: ignore[method-assign]
        self._end = time.perf_counter()

    def run(
        self, chunks: Sequence[Chunk], variants: Mapping[str, ResidentVariant]
    ) -> list[ChunkResult]:
        """See ModelRunner.run."""
        begin = time.perf_counter()
        results = self._runners[self.divide].run(chunks, variants)
        end = time.perf_counter()
        stages = self._stages.take()
        stages["batching"] = end - begin - sum(stages.values())
        stages["schedule, book"] = begin - self._end
        stages["step"] = end - self._end
        stages |= self._kernels.seconds
        stages["Python"] = stages["step"] - stages.pop(PASS, 0.0)
        self._kernels.seconds.clear()
        self.steps.append(([chunk.num_tokens for chunk in chunks], stages))
        self._end = end
        return results

    def forget(self) -> None:
        """See ModelRunner.forget."""
        for runner in self._runners:
            runner.forget()


async def closed_loop(engine: EngineClient, models: Sequence[str], load: Load) -> Outcome:
    """Every slot's requests, one after the other, each slot on its own model."""
    params = SamplingParams(max_tokens=load.new, temperature=0.0, ignore_eos=True)
    prompts = load.prompts()

    async def slot(model: str) -> None:
        for prompt in islice(prompts, load.rounds):
            name = f"profile-{next(_numbers)}"
            spec = GenerationSpec(name, engine.resolve(model), tuple(prompt), params)
            async for _ in engine.submit(spec):
                pass

    begin = time.perf_counter()
    await asyncio.gather(*map(slot, islice(cycle(models), load.concurrency)))
    return Outcome(load.tokens, time.perf_counter() - begin, 0.0, 0)


def medians(
    steps: Sequence[tuple[list[int], dict[str, float]]], shape: Sequence[int]
) -> dict[str, float]:
    """Milliseconds of the stages of steps that had chunks of just these many tokens.

    Raises:
        RuntimeError: there was no such step.
    """
    fitting = [seconds for chunks, seconds in steps if chunks == list(shape)]
    if not fitting:
        raise RuntimeError(f"no step had chunks of {list(shape)} tokens; give more --rounds")
    names = {name for seconds in fitting for name in seconds}
    return {n: 1000 * statistics.median(s.get(n, 0.0) for s in fitting) for n in names}


def combine(whole: Mapping[str, float], divided: Mapping[str, float]) -> dict[str, float]:
    """Kernels from the divided steps; everything else, and the total, from the whole ones."""
    row = {name: divided.get(name, 0.0) for name in KERNELS}
    inside = sum(row.values())
    row["around"] = max(0.0, whole["forward"] - inside)  # embedding, rotations, copies into place
    row["timers"] = max(0.0, inside - whole["forward"])
    for name in ("sampling", "batching", "schedule, book", "Python", "step"):
        row[name] = whole.get(name, 0.0)
    return row


async def profile(
    engine: EngineClient, runner: ProfiledRunner, models: Sequence[str], load: Load
) -> tuple[dict[str, dict[str, float]], float]:
    """The rows of one load by what kind of step they are, and its seconds without timers."""
    await closed_loop(engine, models, load)  # warm: variants loaded, steps recorded
    found = []
    for divide in (False, True):
        runner.divide = divide
        runner.steps.clear()
        outcome = await closed_loop(engine, models, load)
        found.append((list(runner.steps), outcome.seconds))
    runner.divide = False
    shapes = {"decode": [1] * load.concurrency}
    if load.concurrency == 1:
        shapes["prefill"] = [load.prompt]
    rows = {
        kind: combine(medians(found[0][0], shape), medians(found[1][0], shape))
        for kind, shape in shapes.items()
    }
    return rows, found[0][1]


def show(title: str, row: Mapping[str, float]) -> None:
    """One line of the table."""
    print(f"{title:<28}" + "".join(f"{row.get(name, 0.0):>10.2f}" for name in COLUMNS), flush=True)


async def measure(args: argparse.Namespace, config: ServeConfig) -> dict[str, dict[str, float]]:
    """All cases: base and variants at every concurrency."""
    runners: list[ProfiledRunner] = []

    def make_runner(base: BaseModel, sizes: Sizes) -> ProfiledRunner:
        runners.append(ProfiledRunner(base, sizes))
        return runners[0]

    engine = create_engine(config, make_runner=make_runner)
    await engine.start()
    names = sorted(file.stem for file in config.variants.glob("*.safetensors"))[:VARIANTS]
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':<28}" + "".join(f"{name.split(',')[0]:>10}" for name in COLUMNS))
    for title, models in (("base", [engine.base().id]), (f"{len(names)} variants", names)):
        for load in loads(engine.base().id, args.rounds):
            found, seconds = await profile(engine, runners[0], models, load)
            for kind, row in found.items():
                key = f"{title}, {kind} @{load.concurrency}"
                if kind == "decode":
                    row["seconds"] = seconds
                rows[key] = row
                show(key, row)
    await engine.stop(0.0)
    return rows


def loads(model: str, rounds: int) -> Iterator[Load]:
    """One load per concurrency."""
    for concurrency in CONCURRENCIES:
        yield Load(model, concurrency, rounds, stream=True)


def add_http(rows: dict[str, dict[str, float]], config: ServeConfig, rounds: int) -> None:
    """What the base's loads take longer through a server, per step, into their rows."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server_process(config.base, config.variants, Path(folder) / "server.log") as (url, _),
    ):
        for load in loads(model_of(url), rounds):
            through_http(url, load)
            row = rows[f"base, decode @{load.concurrency}"]
            longer = through_http(url, load).seconds - row["seconds"]
            row["HTTP"] = 1000 * longer / (load.tokens / load.concurrency)
            show(f"base through HTTP @{load.concurrency}", row)


def model_of(url: str) -> str:
    """The base's id."""
    return str(httpx.get(f"{url}/v1/models").json()["data"][0]["id"])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=4, help="requests of each slot")
    parser.add_argument("--http", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        variants = Path(folder) / "variants"
        placed(args.variants.glob("*.safetensors"), variants)
        config = ServeConfig(
            args.base,
            variants,
            dtype=args.dtype,
            prefix_caching=False,
            step_time_target_ms=0.0,  # else a slow machine never has all slots decoding at once
        )
        rows = asyncio.run(measure(args, config))
        if args.http:
            add_http(rows, config, args.rounds)
    save("step_profile", {"unit": "ms", "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
