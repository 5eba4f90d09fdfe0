"""Part one: the registry's own code in a child process that is killed while it changes things.

One directory lives through all kills. The child tells through a pipe what it begins and what was
acknowledged; after each kill the parent opens the directory as a restart does and compares.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crashes.model import Operation, State, applied, next_operation, shown
from benchmarks.crashes.tiny import IDENTITY, write_tiny
from tsugiki.codecs import artifact
from tsugiki.variants.registry import Registry
from tsugiki.variants.store import claim

NAMES = ("amber", "birch", "cedar")
FILES = 6
LONGEST = 0.4  # seconds until the kill: some twenty operations


@dataclass(frozen=True)
class Kill:
    """One kill and what was found after it."""

    operation: str  # that was under way
    step: str  # the last one of it that was done
    acknowledged: int  # operations of this life
    kept: bool  # whether the operation under way had happened
    faults: list[str]


def open_registry(root: Path, pipe: int | None = None) -> Registry:
    """As a server does; the child tells every step."""

    def told(step: str) -> None:
        if pipe is not None:
            _tell(pipe, ["step", step])

    return Registry(root, IDENTITY, directory=claim(root), crash_point=told)


def run(folder: Path, kills: int, seed: int) -> list[Kill]:
    """Kill the child `kills` times."""
    rng = random.Random(seed)
    root = folder / "variants"
    root.mkdir(parents=True)
    files = {
        write_tiny(folder / f"{i}.safetensors", i): folder / f"{i}.safetensors"
        for i in range(FILES)
    }
    state: State = {}
    found = []
    for _ in range(kills):
        lines = _one_life(root, files, state, rng)
        kill, state = _judge(root, files, state, lines)
        found.append(kill)
    return found


def _one_life(
    root: Path, files: Mapping[str, Path], state: State, rng: random.Random
) -> list[list[Any]]:
    """What a child told until it was killed."""
    reading, writing = os.pipe()
    seed = rng.random()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(root, files, state, random.Random(seed), writing)
    os.close(writing)
    timer = threading.Timer(rng.uniform(0, LONGEST), os.kill, (child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading) as pipe:
        lines = [json.loads(line) for line in pipe]
    timer.join()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the child ended before it was killed; its traceback is above")
    return lines


def _live(
    root: Path, files: Mapping[str, Path], state: State, rng: random.Random, pipe: int
) -> None:
    """The child: one operation after the other, for ever."""
    try:
        registry = open_registry(root, pipe)
        _tell(pipe, ["open", ""])
        for number in range(10**9):
            operation = next_operation(state, NAMES, list(files), rng)
            _tell(pipe, ["begin", operation.to_json()])
            _do(registry, operation, files, number)
            _tell(pipe, ["acknowledged", ""])
            state = applied(state, operation)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(1)


def _do(registry: Registry, operation: Operation, files: Mapping[str, Path], number: int) -> None:
    name, digest = operation.name, operation.digest
    match operation.kind:
        case "put":
            upload = registry.uploads() / f"{number}.part"
            shutil.copyfile(files[digest], upload)
            registry.put(name, upload, operation.activate)
        case "activate":
            registry.activate(name, digest)
        case "canary":
            registry.canary(name, digest, operation.percent)
        case "rollback":
            registry.rollback(name)
        case "delete version":
            registry.delete_version(name, digest)
            registry.purge(digest)
        case "delete":
            for version in registry.delete(name):
                registry.purge(version.digest)


def _judge(
    root: Path, files: Mapping[str, Path], state: State, lines: list[list[Any]]
) -> tuple[Kill, State]:
    """Compare the directory after a restart with what was acknowledged."""
    under_way: Operation | None = None
    kind, step, acknowledged = "start", "", 0
    for event, content in lines:
        if event == "open":
            kind = "nothing"
        elif event == "begin":
            under_way, step = Operation(**content), ""
        elif event == "step":
            step = content
        elif under_way is not None:
            state, under_way, step = applied(state, under_way), None, ""
            acknowledged += 1
    registry = open_registry(root)
    seen = _seen(registry)
    after = state if under_way is None else applied(state, under_way)
    kept = seen == shown(after)
    faults = [] if kept or seen == shown(state) else [f"{seen} is neither {state} nor {after}"]
    faults += _broken(registry, files) + _leftovers(root, registry)
    registry.close()
    kind = kind if under_way is None else under_way.kind
    happened = kept and under_way is not None
    return Kill(kind, step, acknowledged, happened, faults), after if kept else state


def _seen(registry: Registry) -> dict[str, Any]:
    versions = registry.versions()
    named: dict[str, Any] = {}
    for name in {v.name for v in versions}:
        own = [v for v in versions if v.name == name]
        active = next((v.digest for v in own if v.active), None)
        canary = next(((v.digest, v.canary_percent) for v in own if v.canary_percent), None)
        named[name] = (active, frozenset(v.digest for v in own), canary)
    return named


def _broken(registry: Registry, files: Mapping[str, Path]) -> list[str]:
    """Listed versions that do not read back whole and equal to what was uploaded."""
    faults = []
    for version in registry.versions():
        if version.error:
            faults.append(f"{version.name}@{version.digest}: {version.error}")
        elif artifact.read(version.path).header.digest != version.digest:
            faults.append(f"{version.name}@{version.digest} holds another variant")
        elif version.path.read_bytes() != files[version.digest].read_bytes():
            faults.append(f"{version.name}@{version.digest} is not what was uploaded")
    return faults


def _leftovers(root: Path, registry: Registry) -> list[str]:
    """Files that nothing names."""
    named = {registry.path(v.digest) for v in registry.versions() if not v.error}
    records = {f"{v.name}.json" for v in registry.versions()}
    kept = [path for path in (root / ".tsugiki").rglob("*") if path.is_file()]
    return [
        f"left over: {path.relative_to(root)}"
        for path in kept
        if path not in named and path.name not in (*records, "lock")
    ]


def _tell(pipe: int, message: list[Any]) -> None:
    """One line in one write: whole, or not there."""
    os.write(pipe, (json.dumps(message) + "\n").encode())
