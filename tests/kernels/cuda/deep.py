"""`make kernels-deep`: the tests of the CUDA kernels, executed in every way that the harness knows.

Every order of threads; AddressSanitizer with UndefinedBehaviorSanitizer; ThreadSanitizer; the
fallbacks of the oldest GPU. Sanitizers must be in a process before Python is, so each job is a
pytest of its own; as many run at once as there are cores, the longest first. What a job says goes
to a file, and to the terminal where it failed. Ends with a table; the exit status is the number of
jobs that failed.

    python -m tests.kernels.cuda.deep [--resume] [--jobs N]
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.cuda.host_build import FLAVOURS, preload_path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
LOGS = ROOT / "build/kernels-deep"
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks
    # torch and Python are not instrumented: what they do with their own locks is not seen
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
    "OMP_NUM_THREADS": "1",
}
# What compiles for GPUs, seeds bugs or plays a whole server: once is enough.
ONCE = ("test_resources.py", "test_sparse_budget.py", "test_harness.py", "test_served_by_*.py")


@dataclass(frozen=True, slots=True)
class Job:
    """Some tests in one way of executing kernels."""

    flavour: str
    order: str
    capability: str
    tests: tuple[Path, ...]
    marked: str  # which of the tests, as pytest's -m has it

    @property
    def name(self) -> str:
        """What the log is called, and the line of the table."""
        of = self.tests[0].stem.removeprefix("test_") if len(self.tests) == 1 else "all"
        return f"{self.flavour}-{self.order}-{self.capability}-{of}"

    def command(self) -> list[str]:
        """A pytest that can end with a sanitizer's report, which goes to the process's stderr."""
        return [
            *(sys.executable, "-m", "pytest", "-v", "-m", self.marked, *map(str, self.tests)),
            *("--capture=sys", "-p", "no:faulthandler", "--durations=5"),
            *(f"--cuda-flavour={self.flavour}", f"--cuda-order={self.order}"),
            f"--cuda-capability={self.capability}",
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended."""

    job: Job
    status: int
    seconds: float
    cpu_seconds: float
    log: Path


def jobs() -> Iterator[Job]:
    """The longest first. ThreadSanitizer is slow, so its tests are shared out file by file."""
    once = {path for pattern in ONCE for path in FOLDER.glob(pattern)}
    # only what is launched through the executor depends on the way
    kernels = tuple(p for p in sorted(FOLDER.glob("test_*.py")) if p not in once)
    executed = "compiler and not gpu"
    for path in sorted(kernels, key=lambda path: path.stat().st_size, reverse=True):
        if "launcher: Launcher" in path.read_text():
            yield Job("races", "forward", "8.0", (path,), executed)
    yield Job("sanitized", "random", "8.0", kernels, executed)
    yield Job("plain", "forward", "8.0", (FOLDER,), "not gpu")
    yield Job("plain", "reverse", "8.0", kernels, executed)
    yield Job("plain", "random", "8.0", kernels, executed)
    yield Job("plain", "forward", "7.5", kernels, executed)


def run(job: Job) -> Outcome:
    """One job from start to end, its output in a file."""
    preload = preload_path(FLAVOURS[job.flavour])
    environment = os.environ | SANITIZER_OPTIONS | ({"LD_PRELOAD": str(preload)} if preload else {})
    log, started = LOGS / f"{job.name}.log", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            job.command(), env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Outcome(
        job,
        process.returncode,
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
        log,
    )


def passed_before(job: Job, stamp: str) -> bool:
    """Whether this job passed with all sources as they are."""
    note = LOGS / f"{job.name}.passed"
    return note.exists() and note.read_text() == stamp


def sources_stamp() -> str:
    """Changes with anything in the tests of kernels or in the kernels' package."""
    digest = hashlib.sha256()
    for folder in (FOLDER.parent, ROOT / "kernels"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def tell(outcome: Outcome) -> None:
    """A line for what passed, all of it for what did not."""
    if outcome.status:
        print(f"\n== {outcome.job.name}\n{outcome.log.read_text()}", flush=True)
    said = "passed" if outcome.status == 0 else f"FAILED ({outcome.status})"
    print(f"{outcome.job.name}: {said}, {outcome.seconds:.0f} s", flush=True)


def table(outcomes: list[Outcome], seconds: float) -> Iterator[str]:
    """What ran, how it ended and what it took."""
    yield "\n| job | result | seconds | CPU seconds |\n|---|---|---|---|"
    for one in sorted(outcomes, key=lambda one: one.job.name):
        said = "passed" if one.status == 0 else f"FAILED ({one.status})"
        yield f"| {one.job.name} | {said} | {one.seconds:.0f} | {one.cpu_seconds:.0f} |"
    total = sum(one.cpu_seconds for one in outcomes)
    yield f"| all, {os.cpu_count()} cores | | {seconds:.0f} | {total:.0f} |"


def main() -> int:
    """Run every job; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resume", action="store_true", help="leave out what passed before")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once")
    options = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    stamp, started = sources_stamp(), time.monotonic()
    left = [job for job in jobs() if not (options.resume and passed_before(job, stamp))]
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(run, job) for job in left]):
            outcome = done.result()
            outcomes.append(outcome)
            tell(outcome)
            if outcome.status == 0:
                (LOGS / f"{outcome.job.name}.passed").write_text(stamp)
    print("\n".join(table(outcomes, time.monotonic() - started)))
    return sum(one.status != 0 for one in outcomes)


if __name__ == "__main__":
    raise SystemExit(main())
