"""`make kernels-deep`: the tests of the CUDA kernels, executed in every way that the harness knows.

Every order of threads; AddressSanitizer with UndefinedBehaviorSanitizer; ThreadSanitizer; the
fallbacks of the oldest GPU. Sanitizers must be in a process before Python is, so each way is a
pytest of its own. Ends with a table; the exit status is the number of ways that failed.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.cuda.host_build import FLAVOURS, preload_path

FOLDER = Path(__file__).parent
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks
    # torch and Python are not instrumented: what they do with their own locks is not seen
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Way:
    """How the kernels are executed once."""

    flavour: str
    order: str
    capability: str = "8.0"


WAYS = (
    Way("plain", "forward"),
    Way("plain", "reverse"),
    Way("plain", "random"),
    Way("plain", "forward", "7.5"),
    Way("sanitized", "random"),
    Way("races", "forward"),
)


def run(way: Way) -> tuple[int, float]:
    """Exit status of pytest, and the seconds it took."""
    preload = preload_path(FLAVOURS[way.flavour])
    environment = os.environ | SANITIZER_OPTIONS | ({"LD_PRELOAD": str(preload)} if preload else {})
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "not gpu", str(FOLDER)),
        # a sanitizer writes to the process's own stderr and ends it
        *("--capture=sys", "-p", "no:faulthandler"),
        *(f"--cuda-flavour={way.flavour}", f"--cuda-order={way.order}"),
        f"--cuda-capability={way.capability}",
    ]
    if way != WAYS[0]:  # these do not depend on the way
        command += [
            f"--ignore={FOLDER / name}" for name in ("test_resources.py", "test_harness.py")
        ]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, check=False)
    return done.returncode, time.monotonic() - started


def main() -> int:
    """Run every way; the number of those that failed."""
    results = []
    for way in WAYS:
        print(
            f"\n== {way.flavour}, {way.order}, as compute capability {way.capability}", flush=True
        )
        results.append((way, *run(way)))
    print("\n| flavour | order | capability | result | seconds |\n|---|---|---|---|---|")
    for way, status, seconds in results:
        said = "passed" if status == 0 else f"failed ({status})"
        print(f"| {way.flavour} | {way.order} | {way.capability} | {said} | {seconds:.0f} |")
    return sum(status != 0 for _, status, _ in results)


if __name__ == "__main__":
    raise SystemExit(main())
