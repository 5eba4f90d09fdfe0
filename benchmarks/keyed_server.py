"""Our server with API keys: one tenant for each, with a weight.

Owns: the key file and the start. The keys are made for one run and written nowhere else.
"""

import hashlib
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.resident import resident
from benchmarks.server import free_port


@contextmanager
def keyed_server(
    base: str | Path, work: Path, weights: Mapping[str, float], flags: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """A running server and the key of each tenant; its variants are those in `work`/variants."""
    keys = {tenant: secrets.token_urlsafe(24) for tenant in weights}
    file, variants = work / "keys.toml", work / "variants"
    file.write_text("".join(_table(t, keys[t], weight) for t, weight in weights.items()))
    variants.mkdir(exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "tsugiki", "serve", "--base", str(base)]
    command += ["--variants", str(variants), "--port", str(port), "--api-key-file", str(file)]
    url = f"http://127.0.0.1:{port}"
    with (
        resident("tsugiki", [*command, *flags], url, work / "server.log") as server,
        server.awake(),
    ):
        yield url, keys


def _table(tenant: str, key: str, weight: float) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[[key]]\nid = {json.dumps(tenant)}\nsha256 = "{digest}"\nweight = {weight}\n'
