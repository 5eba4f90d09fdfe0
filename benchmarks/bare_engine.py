"""The engine without HTTP, in a process of its own: each line read is a load, each line written
what it took.

Owns: the closed loop over EngineClient, which takes every token as it comes. Does not know with
what it is compared (http_overhead.py). Flags are those of `tsugiki serve`.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict
from itertools import count

from benchmarks.http_load import Load, Outcome
from tsugiki.commands import serve
from tsugiki.config import load_config
from tsugiki.engine.build import create_engine
from tsugiki.engine.client import EngineClient, GenerationSpec
from tsugiki.engine.request import SamplingParams

_numbers = count()


async def closed_loop(engine: EngineClient, load: Load) -> Outcome:
    """Every slot's requests, one after the other."""
    params = SamplingParams(max_tokens=load.new, temperature=0.0, ignore_eos=True)
    prompts, variant = load.prompts(), engine.resolve(load.model)

    async def slot(own: list[list[int]]) -> None:
        for prompt in own:
            spec = GenerationSpec(f"bare-{next(_numbers)}", variant, tuple(prompt), params)
            async for _ in engine.submit(spec):
                pass

    shares = [[next(prompts) for _ in range(load.rounds)] for _ in range(load.concurrency)]
    begin = time.perf_counter()
    await asyncio.gather(*map(slot, shares))
    return Outcome(load.tokens, time.perf_counter() - begin, 0.0, 0)


async def answer(engine: EngineClient) -> None:
    """Read loads from standard input until it ends."""
    await engine.start()
    print(json.dumps({"model": engine.base().id}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        outcome = await closed_loop(engine, Load(**json.loads(line)))
        print(json.dumps(asdict(outcome)), flush=True)
    await engine.stop(0.0)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    serve.add_arguments(parser)
    config = load_config(vars(parser.parse_args()))
    serve.configure_logging()
    engine = create_engine(config)
    serve.keep_what_was_imported()
    asyncio.run(answer(engine))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
