"""Commands in processes of their own, some at a time: many small runs fill one GPU.

Owns: their order and what is shown of them. Does not know: what they do; each keeps its
own results.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

SHOWN = 25  # lines of what a failing command said


def run_side_by_side(commands: Mapping[str, Sequence[str]], jobs: int) -> list[str]:
    """Run all of them, begun in their order; the names of those that failed."""
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_run, command): name for name, command in commands.items()}
        for done in as_completed(running):
            name, (said, seconds) = running[done], done.result()
            print(f"{name}: {seconds:.0f} s{'' if said is None else ', FAILED'}", flush=True)
            if said is not None:
                print("\n".join(said.splitlines()[-SHOWN:]), flush=True)
                failed.append(name)
    return failed


def _run(command: Sequence[str]) -> tuple[str | None, float]:
    """What it said where it failed, and its seconds."""
    began = time.monotonic()
    found = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return found.stdout if found.returncode else None, time.monotonic() - began
