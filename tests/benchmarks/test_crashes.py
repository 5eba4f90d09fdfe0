"""The kills of benchmarks.crashes, a few of them, against the registry as it is."""

import subprocess
import sys


def test_a_registry_that_is_killed_loses_nothing_it_acknowledged() -> None:
    command = [sys.executable, "-m", "benchmarks.crashes", "--registry", "3", "--server", "0"]
    done = subprocess.run([*command, "--no-save"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "registry: 3 kills" in done.stdout
    assert "faults: 0" in done.stdout
