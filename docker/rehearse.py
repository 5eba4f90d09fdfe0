"""Runs the Dockerfile without a container engine: each stage in a chroot, then the server in it.

For machines where no engine is to be had. Stands for the base image with a minimal Debian made by
debootstrap, carries out the Dockerfile's own RUN, COPY, ENV, WORKDIR and USER lines, starts
ENTRYPOINT + CMD as that user with its environment, waits for the HEALTHCHECK command to pass, and
sends STOPSIGNAL. Needs root, debootstrap and a package mirror; files and folders that the machine's
package tools need are lent to the chroot with --lend.

    python docker/rehearse.py --root /tmp/rehearsal --suite bookworm
"""

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
STARTUP_SECONDS = 300
ENGINE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # what engines set


@dataclass
class Stage:
    """One FROM: a directory tree, and what later instructions see."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "root"
    shell: list[str] = field(default_factory=lambda: ["/bin/sh", "-c"])
    settings: dict[str, str] = field(default_factory=dict)  # ENTRYPOINT, CMD, ... as written

    def command(self, words: list[str]) -> list[str]:
        """`words` inside the chroot, as its user, with its environment only."""
        env = {"PATH": ENGINE_PATH, "HOME": "/tmp", **self.env}
        pairs = [f"{key}={value}" for key, value in env.items()]
        identity = [] if self.user == "root" else [f"--userspec={self.user}"]
        inside = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(words)}"
        return [
            "chroot", *identity, str(self.root), "/usr/bin/env", "-i", *pairs,
            "/bin/sh", "-c", inside,
        ]  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of every line of a Dockerfile, continuations joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(pair[0].upper(), pair[1].strip()) for pair in pairs]


def expand(text: str, values: dict[str, str]) -> str:
    """Replace $NAME and ${NAME}."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


class Rehearsal:
    """Carries the instructions out, one after the other."""

    def __init__(self, root: Path, base: Path, lend: list[Path], arguments: dict[str, str]) -> None:
        self.root = root
        self.base = base
        self.lend = lend
        self.arguments = arguments
        self.stages: dict[str, Stage] = {}
        self.stage = Stage(base)

    def run(self, instruction: str, rest: str) -> None:
        """One instruction; those that only describe the image are kept in `settings`."""
        print(f"==> {instruction} {' '.join(rest.split())[:150]}", flush=True)
        action = getattr(self, f"_{instruction.lower()}", None)
        if action is None:
            self.stage.settings[instruction] = rest
        else:
            action(rest)

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.arguments.setdefault(name, default)

    def _from(self, rest: str) -> None:
        name = rest.split()[-1] if " AS " in rest.upper() else "final"
        root = self.root / name
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", self.base, root], check=True)
        for path in self.lend:
            target = root / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copy(path, target)
        for device in ("null", "zero", "urandom"):
            (root / "dev" / device).unlink(missing_ok=True)
            subprocess.run(["cp", "-a", f"/dev/{device}", root / "dev" / device], check=True)
        self.stage = self.stages[name] = Stage(root)

    def _env(self, rest: str) -> None:
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            self.stage.env[name] = expand(value, {"PATH": ENGINE_PATH, **self.stage.env})

    def _shell(self, rest: str) -> None:
        self.stage.shell = json.loads(rest)

    def _workdir(self, rest: str) -> None:
        self.stage.workdir = rest
        (self.stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self.stage.user = f"{rest}:{rest}"

    def _run(self, rest: str) -> None:
        words = [*self.stage.shell, rest]
        known = Stage(self.stage.root, {**self.arguments, **self.stage.env}, self.stage.workdir)
        subprocess.run(known.command(words), check=True)

    def _copy(self, rest: str) -> None:
        words = rest.split()
        source = PROJECT
        if words[0].startswith("--from="):
            source = self.stages[words.pop(0).removeprefix("--from=")].root
        *names, last = words
        place = self.stage.root / last.lstrip("/") if last[0] == "/" else None
        target = place or self.stage.root / self.stage.workdir.lstrip("/") / last
        for name in names:
            origin = source / name.lstrip("/")
            into = target / origin.name if last.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, into, dirs_exist_ok=True, symlinks=True)
            else:
                shutil.copy(origin, into)


def serve(stage: Stage, environment: dict[str, str]) -> int:
    """Start the image's command, wait for its health check, stop it; its exit code."""
    stage.env |= environment
    with proc_mounted(stage.root):
        return _serve(stage)


@contextmanager
def proc_mounted(root: Path) -> Iterator[None]:
    """/proc within the chroot, as a container has it."""
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", root / "proc"], check=True)


def _serve(stage: Stage) -> int:
    words = json.loads(stage.settings["ENTRYPOINT"]) + json.loads(stage.settings["CMD"])
    check = json.loads(re.sub(r"^.*?CMD ", "", stage.settings["HEALTHCHECK"]))
    print(f"==> start {shlex.join(words)} as {stage.user}", flush=True)
    server = subprocess.Popen(stage.command(words))
    begin = time.monotonic()
    while subprocess.run(stage.command(check), capture_output=True, check=False).returncode:
        if server.poll() is not None or time.monotonic() > begin + STARTUP_SECONDS:
            server.kill()
            raise SystemExit("the server never became healthy")
        time.sleep(1)
    print(f"==> healthy after {time.monotonic() - begin:.0f} s", flush=True)
    with urllib.request.urlopen(f"http://127.0.0.1:{stage.env['TSUGIKI_PORT']}/health") as answer:
        print(answer.read().decode())
    server.send_signal(getattr(signal, stage.settings["STOPSIGNAL"]))
    return server.wait(60)


def main() -> int:
    """Build both stages, run the server, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="an empty directory")
    parser.add_argument("--suite", default="bookworm", help="Debian release for the base image")
    parser.add_argument("--lend", type=Path, nargs="*", default=[Path("/etc/resolv.conf")])
    parser.add_argument("--build-arg", nargs="*", default=["EXTRAS=demo"], metavar="NAME=VALUE")
    parser.add_argument(
        "--env", nargs="*", default=["TSUGIKI_HOST=127.0.0.1"], metavar="NAME=VALUE", help="server"
    )
    parser.add_argument("--pip-env", nargs="*", default=[], metavar="NAME=VALUE", help="build")
    options = parser.parse_args()
    base = options.root / "base-image"
    if not base.exists():
        command = ["debootstrap", "--variant=minbase", options.suite, str(base)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    pairs = dict(pair.split("=", 1) for pair in [*options.build_arg, *options.pip_env])
    rehearsal = Rehearsal(options.root, base, options.lend, pairs)
    for instruction, rest in instructions((PROJECT / "Dockerfile").read_text(encoding="utf-8")):
        rehearsal.run(instruction, rest)
    code = serve(rehearsal.stage, dict(pair.split("=", 1) for pair in options.env))
    compilers = [name for name in ("g++", "gcc", "cc", "c++") if
                 (rehearsal.stage.root / "usr/bin" / name).exists()]  # fmt: skip
    print(f"exit code {code}; compilers in the image: {', '.join(compilers) or 'none'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
