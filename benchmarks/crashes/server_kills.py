"""Part two: the whole server on a real base, killed while a change over HTTP is under way.

One directory lives through all kills. After each restart every listed version must give the answer
that it gave before the first kill, under the name and digest that were asked for.
"""

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.crashes.model import Named, Operation, State, applied, next_operation, shown
from benchmarks.crashes.registry_kills import Kill
from benchmarks.server import free_port, wait_until_ready
from tsugiki.codecs.artifact import read_header

SHIPPED = Path(__file__).parents[2] / "examples" / "variants"
PROMPT = "My card has not arrived yet. 12 * 8 ="
TOKENS = 12
FLAGS = ["--max-model-len", "256", "--kv-memory", "64MiB"]
FIRST_GUESS = 0.1  # seconds that a change takes, until one was seen
BEFORE = 4  # changes that are acknowledged before the one that is killed


@dataclass
class Run:
    """What stays the same through all kills."""

    root: Path
    base: str
    log: Path
    files: Mapping[str, Path]  # by digest
    answers: dict[str, list[str]] = field(default_factory=dict)  # greedy tokens, by digest
    seconds: dict[str, float] = field(default_factory=dict)  # of the last change seen, by kind


class Server:
    """A server process, and a client of it, until it is killed."""

    def __init__(self, run: Run) -> None:
        """Returns when it is ready.

        Raises:
            ServerDidNotStart: see benchmarks.server.
        """
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "tsugiki", "serve", "--base", run.base]
        command += ["--variants", str(run.root), "--port", str(port), *FLAGS]
        with run.log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.http = httpx.Client(base_url=url, timeout=120.0)
        try:
            wait_until_ready(self.process, url, run.log)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, unless it is dead already."""
        self.http.close()
        self.process.kill()
        self.process.wait()


def run(folder: Path, base: str, kills: int, seed: int) -> list[Kill]:
    """Kill the server `kills` times."""
    rng = random.Random(seed)
    root = folder / "variants"
    root.mkdir(parents=True)
    state: State = {}
    files = {}
    for file in sorted(SHIPPED.glob("*.safetensors")):
        shutil.copyfile(file, root / file.name)
        digest = read_header(file).digest
        files[digest] = file
        state[file.stem] = Named((digest,), frozenset({digest}))
    names = [*state, "upload-1", "upload-2"]
    benchmark = Run(root, base, folder / "server.log", files)
    server = Server(benchmark)
    found = []
    try:
        benchmark.answers.update((d, _answer(server.http, n, d)) for n, d in _versions(state))
        for number in range(kills):
            for _ in range(BEFORE):
                operation = next_operation(state, names, list(files), rng)
                _acknowledged(benchmark, server, operation)
                state = applied(state, operation)
            operation = next_operation(state, names, list(files), rng, uploads=0.3)
            status = _killed_within(benchmark, server, operation, rng)
            server.kill()
            server = Server(benchmark)
            kill, state = _judge(benchmark, server, state, operation, status)
            found.append(kill)
            print(
                f"  {number + 1}/{kills}: {kill.operation}, {kill.step}", *kill.faults, flush=True
            )
    finally:
        server.kill()
    return found


def _judge(
    benchmark: Run, server: Server, state: State, operation: Operation, status: int | None
) -> tuple[Kill, State]:
    """Compare what the server lists and answers after a restart with what was acknowledged."""
    seen, after = _seen(server.http), applied(state, operation)
    kept = seen == shown(after)
    faults = []
    if not kept and (status is not None or seen != shown(state)):
        faults.append(f"{operation}, answered {status}: {seen}, expected {shown(after)}")
    if status is not None and status >= 400:
        faults.append(f"{operation} was answered with {status}")
    for name, (_, digests, _) in seen.items():
        for digest in sorted(digests):
            answer = _answer(server.http, name, digest)
            if answer != benchmark.answers[digest]:
                faults.append(f"{name}@{digest} answers {answer}")
    step = "not acknowledged" if status is None else "acknowledged"
    acknowledged = BEFORE + (status is not None)
    kill = Kill(operation.kind, step, acknowledged, kept, faults)
    return kill, after if kept else state


def _acknowledged(benchmark: Run, server: Server, operation: Operation) -> None:
    """A change that nothing disturbs; tells how long one takes."""
    begin = time.monotonic()
    _ask(server.http, operation, benchmark.files).raise_for_status()
    benchmark.seconds[operation.kind] = time.monotonic() - begin


def _killed_within(
    benchmark: Run, server: Server, operation: Operation, rng: random.Random
) -> int | None:
    """The status of the answer, or None when the server was dead before it answered."""
    usual = benchmark.seconds.get(operation.kind, FIRST_GUESS)
    timer = threading.Timer(rng.uniform(0, 1.2 * usual), server.process.kill)
    timer.start()
    try:
        return _ask(server.http, operation, benchmark.files).status_code
    except httpx.TransportError:
        return None
    finally:
        timer.join()
        server.process.wait()


def _ask(http: httpx.Client, operation: Operation, files: Mapping[str, Path]) -> httpx.Response:
    route, digest = f"/v1/variants/{operation.name}", operation.digest
    match operation.kind:
        case "put":
            query = {"activate": str(operation.activate).lower()}
            return http.put(route, params=query, content=_slowly(files[digest]))
        case "activate":
            return http.post(f"{route}/activate", json={"digest": digest})
        case "canary":
            fields = {"digest": digest, "percent": operation.percent}
            return http.post(f"{route}/canary", json=fields)
        case "rollback":
            return http.post(f"{route}/rollback")
        case "delete version":
            return http.delete(route, params={"digest": digest})
        case "delete":
            return http.delete(route)


def _slowly(file: Path) -> Iterator[bytes]:
    """A body in pieces, so that a kill finds half an upload too."""
    with file.open("rb") as content:
        while piece := content.read(2**16):
            yield piece


def _seen(http: httpx.Client) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for card in http.get("/v1/variants").raise_for_status().json()["data"]:
        active, digests, canary = seen.get(card["name"], (None, frozenset(), None))
        seen[card["name"]] = (
            card["digest"] if card["active"] else active,
            digests | {card["digest"]},
            (card["digest"], card["canary_percent"]) if card["canary_percent"] else canary,
        )
    return seen


def _versions(state: State) -> list[tuple[str, str]]:
    return [(name, digest) for name, named in state.items() for digest in sorted(named.digests)]


def _answer(http: httpx.Client, name: str, digest: str) -> list[str]:
    """Greedy tokens; what answered must be what was asked."""
    body = {"model": f"{name}@{digest}", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    response = http.post("/v1/completions", json={**body, "logprobs": 1})
    if response.is_error or response.headers["x-tsugiki-variant"] != f"{name}@{digest}":
        return [f"{response.status_code}: {response.text[:200]}"]
    tokens: list[str] = response.json()["choices"][0]["logprobs"]["tokens"]
    return tokens
