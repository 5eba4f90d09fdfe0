"""Servers that stay in memory while others are measured, truly idle meanwhile: SIGSTOP.

Owns: starting ours and vLLM's CPU server, and that only one of them runs at a time. A stopped
process spins no thread, polls nothing and keeps its memory; loading vLLM again for every pair would
take a minute each. Does not know what is measured.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.server import ServerDidNotStart, free_port

START_SECONDS = 1200.0  # vLLM compiles its model first
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # every server chooses for itself


@dataclass(frozen=True, slots=True)
class Resident:
    """A server process with its children; stopped (idle) unless it runs inside `awake`."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside the block."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """SIGTERM, and SIGKILL a minute later."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


@contextmanager
def resident(
    name: str,
    command: Sequence[str],
    url: str,
    log: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Resident]:
    """Start a server in a process group of its own, wait until it answers, stop it.

    With keys a 401 of /v1/models is an answer too. While it lives, SIGTERM (`timeout`, `kill`) ends
    this program with its servers: a process group of their own would outlive it.

    Raises:
        ServerDidNotStart: it ended, or START_SECONDS went by.
    """
    inherited = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**inherited, **(environ or {})},
        )  # fmt: skip
    server = Resident(name, url, process)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        _wait(server, log)
        os.killpg(process.pid, signal.SIGSTOP)
        yield server
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            server.end()


def tsugiki_server(
    base: str | Path, variants: Path, log: Path, flags: Sequence[str] = (), name: str = "tsugiki"
) -> AbstractContextManager[Resident]:
    """`tsugiki serve`, stopped."""
    port = free_port()
    command = [sys.executable, "-m", "tsugiki", "serve", "--base", str(base)]
    command += ["--variants", str(variants), "--port", str(port), *flags]
    return resident(name, command, f"http://127.0.0.1:{port}", log)


def vllm_server(
    venv: Path, base: Path, log: Path, adapters: Sequence[Path] = (), name: str = "vllm"
) -> AbstractContextManager[Resident]:
    """`vllm serve` of the CPU build in `venv`, with LoRA only where there are adapters; stopped."""
    port = free_port()
    command = [str(venv / "bin" / "vllm"), "serve", str(base), "--served-model-name", base.name]
    command += ["--dtype", "bfloat16", "--max-model-len", "2048", "--port", str(port)]
    if adapters:
        count = str(len(adapters))
        command += ["--enable-lora", "--max-loras", count, "--max-lora-rank", "16"]
        command += ["--lora-modules", *(f"{path.name}={path}" for path in adapters)]
    environ = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    }
    return resident(name, command, f"http://127.0.0.1:{port}", log, environ)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _wait(server: Resident, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/v1/models", timeout=5.0).status_code in (200, 401):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise ServerDidNotStart(f"{server.name} is not ready; the log ends:\n{log.read_text()[-4000:]}")
