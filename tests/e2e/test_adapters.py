"""vLLM's adapter routes on a real server: a PEFT directory becomes a variant and goes again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.adapters import save_adapter

PROMPT = {"prompt": [0, 40, 41, 42, 43], "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def roots(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapters."""
    folder = tmp_path_factory.mktemp("roots")
    save_adapter(tiny_base, folder / "mine")
    return folder


@pytest.fixture(scope="module")
def client(serve: Callable[..., Any], roots: Path) -> Iterator[httpx.Client]:
    """A server that may read that directory."""
    with serve("--adapter-roots", str(roots)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_an_adapter_is_loaded_served_and_unloaded(client: httpx.Client, roots: Path) -> None:
    body = {"lora_name": "mine", "lora_path": str(roots / "mine")}
    assert client.post("/v1/load_lora_adapter", json=body).status_code == 200
    served = client.post("/v1/completions", json={**PROMPT, "model": "mine"}).json()
    shipped = client.post("/v1/completions", json={**PROMPT, "model": "lora"}).json()
    assert served["choices"][0]["text"] == shipped["choices"][0]["text"]
    answer = client.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert answer.status_code == 200
    gone = client.post("/v1/completions", json={**PROMPT, "model": "mine"})
    assert gone.status_code == 404


def test_a_path_outside_the_roots_is_refused(client: httpx.Client, roots: Path) -> None:
    for path in (str(roots.parent), "/etc", f"{roots}/mine/../../etc"):
        body = {"lora_name": "mine", "lora_path": path}
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 400
