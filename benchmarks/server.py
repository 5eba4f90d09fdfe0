"""A real server process for benchmarks and end-to-end tests: started, waited for, drained."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

START_SECONDS = 300.0
POLL_SECONDS = 0.1


class ServerDidNotStart(RuntimeError):
    """The server ended, or was not ready in time; the message holds the end of its log."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    """Whether /ready answers 200; nobody listening yet is a no."""
    try:
        return httpx.get(f"{url}/ready", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when /ready answers 200.

    Raises:
        ServerDidNotStart: it ended, or START_SECONDS went by.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if is_ready(url):
            return
        time.sleep(POLL_SECONDS)
    raise ServerDidNotStart(f"{url} is not ready; the log ends:\n{log.read_text()[-4000:]}")


@contextmanager
def running_server(
    base: str | Path, variants: Path, log: Path, flags: Sequence[str] = ()
) -> Iterator[str]:
    """The URL of a `server_process`."""
    with server_process(base, variants, log, flags) as (url, _):
        yield url


@contextmanager
def server_process(
    base: str | Path,
    variants: Path,
    log: Path,
    flags: Sequence[str] = (),
    program: Sequence[str] = ("tsugiki", "serve"),
) -> Iterator[tuple[str, int]]:
    """`tsugiki serve` in a process of its own, stopped with SIGTERM; yields its URL and its id.

    `program` is another module with the same flags.

    Raises:
        ServerDidNotStart: see wait_until_ready.
        RuntimeError: it did not end with exit code 0 after SIGTERM.
    """
    port = free_port()
    command = [sys.executable, "-m", *program, "--base", str(base)]
    command += ["--variants", str(variants), "--port", str(port), *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, log)
        yield url, process.pid
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise RuntimeError(f"exit code {process.returncode}; log: {log.read_text()[-4000:]}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
