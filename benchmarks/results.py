"""How results are written down: what was run, where, with which versions, and honest intervals."""

import fcntl
import json
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "numpy")
RESAMPLES = 2000


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval (percentile method, fixed seed)."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return statistics.median(values), low, high


def machine() -> dict[str, Any]:
    """Processor, cores, versions, commit."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": len(open_cpus()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit,
    }


def device_name(device: Any) -> str:
    """Of a torch.device: its GPU's, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def open_cpus() -> set[int]:
    """Processors this process may use."""
    import os

    return os.sched_getaffinity(0)


def json_lines(path: Path) -> list[Any]:
    """The rows of a file of JSON lines, none where there is no file; a line that a kill left
    unfinished at the end is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Add rows, on lines of their own whatever a kill left unfinished at the end."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # runs side by side may share a file
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def save(name: str, data: Any) -> Path:
    """Write benchmarks/results/NAME.json: the data, the command, the machine."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.json"
    record = {"command": " ".join(sys.argv), "machine": machine(), "data": data}
    file.write_text(json.dumps(record, indent=1) + "\n")
    return file
