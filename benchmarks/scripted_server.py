"""`tsugiki serve` with a model that computes nothing: what is left is the cost of serving.

Owns: a model runner that answers after a set time, and profiling the event loop. Everything above
the runner (scheduler, threads, text, HTTP) is the server's own. Flags are those of `tsugiki serve`.

    python -m benchmarks.scripted_server --base demo --variants DIR --step-ms 10
"""

import argparse
import cProfile
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tsugiki.codecs.base import ResidentVariant
from tsugiki.commands import serve
from tsugiki.config import load_config
from tsugiki.engine.build import create_engine
from tsugiki.engine.model_runner import ChunkResult
from tsugiki.engine.schedule import Chunk

TOKENS = range(1000, 3000)  # ordinary words, one after the other


class ScriptedRunner:
    """Every step takes `seconds`, off the interpreter, and gives every sequence its next word."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._results = [ChunkResult(token_ids=(token,)) for token in TOKENS]

    def run(
        self, chunks: Sequence[Chunk], variants: Mapping[str, ResidentVariant]
    ) -> list[ChunkResult]:
        """See ModelRunner.run."""
        time.sleep(self._seconds)
        return [self._result(chunk) for chunk in chunks]

    def forget(self) -> None:
        """See ModelRunner.forget."""

    def _result(self, chunk: Chunk) -> ChunkResult:
        if not chunk.completes:
            return ChunkResult()
        return self._results[chunk.request.num_tokens % len(self._results)]


def main() -> int:
    """Entry point: serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--profile", type=Path, help="from SIGUSR1 on, profile the event loop")
    serve.add_arguments(parser)
    args = vars(parser.parse_args())
    step, profile = args.pop("step_ms") / 1000, args.pop("profile")
    config = load_config(args)
    serve.configure_logging()
    listener = serve.bind(config)
    engine = create_engine(config, make_runner=lambda base, sizes: ScriptedRunner(step))
    profiler = cProfile.Profile(time.thread_time_ns, 1e-9)  # of this thread, without its waiting
    signal.signal(signal.SIGUSR1, lambda *_: profiler.enable())
    code = serve.run_server(engine, config, listener)
    if profile:
        profiler.dump_stats(profile)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
