"""The system calls of a PUT, an activation and a deletion, in order, as strace sees them.

Checked for every rename below the state directory: the file was synced before it, the folder after
it, and the answer on the socket began after both.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.crashes.server_kills import FLAGS, SHIPPED
from benchmarks.server import free_port, wait_until_ready
from tsugiki.codecs.artifact import read_header

CALLS = "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,write,writev,sendto,sendmsg"
LINE = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$")
PATH = re.compile(r'"([^"]*)"|<([^<>]*)>')
ANSWER = "HTTP/1.1 2"


@dataclass(frozen=True)
class Call:
    """One system call that ended."""

    name: str  # sync | rename | unlink | answer
    text: str
    paths: tuple[Path, ...]


def run(folder: Path, base: str) -> int:
    """Print the calls and what is wrong with their order; 1 when something is."""
    if shutil.which("strace") is None:
        print("strace is not installed; on Debian: apt-get install strace")
        return 1
    folder.mkdir(exist_ok=True)
    trace = folder / "trace"
    start = _traced_changes(folder, base, trace)
    lines = trace.read_bytes()[start:].decode(errors="replace").splitlines()
    calls = list(parse(lines))
    state = folder / "variants" / ".tsugiki"
    for call in calls:
        print(call.text.replace(str(state), "…"))
    faults = wrong_order(calls)
    renames = sum(call.name == "rename" for call in calls)
    answers = sum(call.name == "answer" for call in calls)
    print(f"\n{renames} renames, {answers} acknowledgements, {len(faults)} out of order", *faults)
    return int(bool(faults) or not renames or not answers)


def parse(lines: Sequence[str]) -> Iterator[Call]:
    """Calls on the state directory and acknowledgements, in the order in which syncs and renames
    ended and answers began. strace splits a call that another thread interrupts in two lines."""
    begun: dict[str, str] = {}
    for line in lines:
        match = LINE.match(line)
        if match is None:
            continue
        pid, name, rest = match.groups()
        if "<unfinished ...>" in rest and ANSWER not in rest:
            begun[pid] = rest.replace("<unfinished ...>", "")
            continue
        whole = begun.pop(pid, "") + rest if "resumed>" in line else rest
        if call := _call(name, whole):
            yield call


def _call(name: str, rest: str) -> Call | None:
    paths = tuple(Path(a or b) for a, b in PATH.findall(rest) if (a or b).startswith("/"))
    below = [path for path in paths if ".tsugiki" in path.parts]
    text = f"{name}({rest}"
    if name in ("fsync", "fdatasync") and below:
        return Call("sync", text, tuple(below))
    if name.startswith("rename") and below:
        return Call("rename", text, tuple(below))
    if name.startswith("unlink") and below and rest.rstrip().endswith("= 0"):
        return Call("unlink", text, tuple(below))
    return Call("answer", text[:120], ()) if ANSWER in rest else None


def wrong_order(calls: Sequence[Call]) -> list[str]:
    """Every rename without a sync of the file before it, or of the folder between it and the next
    acknowledgement."""
    faults = []
    for i, call in enumerate(calls):
        if call.name != "rename":
            continue
        source, target = call.paths[0], call.paths[1]
        answer = next((k for k in range(i, len(calls)) if calls[k].name == "answer"), i)
        if not any(c.name == "sync" and source in c.paths for c in calls[:i]):
            faults.append(f"not synced before its rename: {source}")
        if not any(c.name == "sync" and target.parent in c.paths for c in calls[i:answer]):
            faults.append(f"folder not synced before the acknowledgement: {target.parent}")
    return faults


def _traced_changes(folder: Path, base: str, trace: Path) -> int:
    """PUT of two versions, an activation and a deletion, on a server under strace; returns where in
    the trace they begin."""
    variants, log = folder / "variants", folder / "server.log"
    variants.mkdir()
    port = free_port()
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "60", "-e", f"trace={CALLS}"]
    command += ["-o", str(trace), sys.executable, "-m", "tsugiki", "serve", "--base", base]
    command += ["--variants", str(variants), "--port", str(port), *FLAGS]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, log)
        start = trace.stat().st_size
        first, second = sorted(SHIPPED.glob("*.safetensors"))[:2]
        with httpx.Client(base_url=url, timeout=120.0) as http:
            for file in (first, second):
                http.put("/v1/variants/bank", content=file.read_bytes()).raise_for_status()
            digest = read_header(first).digest
            http.post("/v1/variants/bank/activate", json={"digest": digest}).raise_for_status()
            http.delete("/v1/variants/bank").raise_for_status()
        return start
    finally:
        # strace ends when the server does, whose lock file tells its process id.
        os.kill(int((variants / ".tsugiki" / "lock").read_text()), signal.SIGKILL)
        process.wait()
