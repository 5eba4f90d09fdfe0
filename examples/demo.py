"""The demo: one small server that answers as three fine-tunes and as their base.

Starts `tsugiki serve --base demo` with the shipped fine-tunes and prints what to try. With --once
it sends one prompt per model, all four at the same time so that they share the engine's batches,
prints a table and stops the server.
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

SHIPPED = Path(__file__).parent / "variants"
PROMPTS = {
    "banking77": "I ordered a card two weeks ago and it is still not here.",
    "arithmetic": "A baker has 12 trays with 8 rolls each and sells 30 rolls. How many are left?",
    "pirate": "How do I keep bread fresh?",
}
BASE_PROMPT = "What is the capital of France?"
START_SECONDS = 600.0  # the first start converts the base and compiles the CPU kernels


@dataclass(frozen=True)
class Answer:
    """One row of the table."""

    model: str
    text: str
    tokens_per_second: float


def prepare_variants(cache: Path) -> Path:
    """Copy the shipped files into the cache: the server keeps its registry beside them."""
    target = cache / "demo" / "variants"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(SHIPPED.glob("*.safetensors")):
        copy = target / file.name
        if not copy.exists() or copy.read_bytes() != file.read_bytes():
            shutil.copyfile(file, copy)
    return target


def start_server(port: int, variants: Path, log: Path) -> subprocess.Popen[bytes]:
    """The command a user would type, as a child process; its request lines go to `log`."""
    command = [sys.executable, "-m", "tsugiki", "serve", "--base", "demo"]
    command += ["--variants", str(variants), "--host", "127.0.0.1", "--port", str(port)]
    print("$ tsugiki", *command[3:], f"> {log}", flush=True)
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output)


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Poll /ready until it answers 200; give up when the server ends or the time is over."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with exit code {server.returncode}")
        try:
            if httpx.get(f"{url}/ready", timeout=2.0).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready within {START_SECONDS:.0f} s")


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> Answer:
    """One greedy chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 64,
    }
    start = time.monotonic()
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    reply = response.json()
    seconds = time.monotonic() - start
    rate = reply["usage"]["completion_tokens"] / seconds
    return Answer(model, reply["choices"][0]["message"]["content"].strip(), rate)


async def ask_all(url: str) -> tuple[list[Answer], dict[str, tuple[int, float]]]:
    """Every model at once, and (file bytes, honest ratio) by variant name."""
    async with httpx.AsyncClient(base_url=url, timeout=120.0) as client:
        models = (await client.get("/v1/models")).json()["data"]
        base = next(m["id"] for m in models if m["parent"] is None)
        listing = (await client.get("/v1/variants")).json()["data"]
        sizes = {v["name"]: (v["bytes"], v["ratio"]) for v in listing}
        prompts = {**{n: p for n, p in PROMPTS.items() if n in sizes}, base: BASE_PROMPT}
        answers = await asyncio.gather(*(ask(client, m, p) for m, p in prompts.items()))
    return list(answers), sizes


def print_table(answers: list[Answer], sizes: dict[str, tuple[int, float]]) -> None:
    """Variant, file size, honest ratio, tokens a second, answer."""
    print(f"\n{'model':<24}{'file':>10}{'ratio':>8}{'tok/s':>8}  answer")
    for answer in answers:
        size, ratio = sizes.get(answer.model, (0, 0.0))
        file = f"{size / 1e6:.2f} MB" if size else "-"
        honest = f"{ratio:.0f}x" if size else "-"
        text = " ".join(answer.text.split())
        print(f"{answer.model:<24}{file:>10}{honest:>8}{answer.tokens_per_second:>8.1f}  {text}")
    print(flush=True)


def print_hints(url: str) -> None:
    """What a newcomer can type next."""
    names = ", ".join(PROMPTS)
    print(
        f"""
One base, three fine-tunes ({names}) at {url}. Try, in another terminal:

  curl -s {url}/v1/models | python3 -m json.tool
  curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "pirate", "messages": [{{"role": "user", "content": "How are you?"}}]}}'
  .venv/bin/tsugiki chat --url {url} --model arithmetic
  .venv/bin/tsugiki variants ls --url {url}

Ctrl-C stops it.
""",
        flush=True,
    )


def main() -> int:
    """Entry point; the exit code is the server's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--once", action="store_true", help="one mixed batch, a table, and stop")
    args = parser.parse_args()
    cache = Path(os.environ.get("TSUGIKI_CACHE", "~/.cache/tsugiki")).expanduser()
    url = f"http://127.0.0.1:{args.port}"
    server = start_server(args.port, prepare_variants(cache), cache / "demo" / "requests.log")
    try:
        wait_until_ready(server, url)
        if args.once:
            asyncio.run(ask_all(url))  # first answers load the variants
            print_table(*asyncio.run(ask_all(url)))
            server.send_signal(signal.SIGTERM)
        else:
            print_hints(url)
        return server.wait()
    except KeyboardInterrupt:
        server.send_signal(signal.SIGTERM)
        return server.wait()
    finally:
        if server.poll() is None:
            server.kill()


if __name__ == "__main__":
    raise SystemExit(main())
