"""`python -m benchmarks`: every question that needs nothing but the checkout, one after the other.

Not among them: `benchmarks.quality` and `benchmarks.frontier`, which need the uncompressed
fine-tunes (examples/README.md), `benchmarks.churn`, which makes some hundred variants first and
takes an hour, `benchmarks.soak`, half an hour by itself, and vLLM beside us
(`benchmarks.peers --vllm`).
"""

import subprocess
import sys

MODULES = (
    "oracle",
    "kernels_cpu",
    "linears_cpu",
    "peers",
    "http_overhead",
    "idle_variants",
    "many_variants",
    "prefix_cache",
    "fairness",
    "cold_start",
)


def main() -> int:
    """Run each benchmark in a process of its own; the number of those that failed."""
    failed = 0
    for name in MODULES:
        print(f"\n== python -m benchmarks.{name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}"]
        failed += subprocess.run(command, check=False).returncode != 0
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
