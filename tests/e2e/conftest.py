"""A real server process on the tiny base with one variant of each codec."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.adapters import save_adapter
from benchmarks.server import running_server

CODECS = ("deltadq", "deltadq-rows", "bitdelta", "lora")
OPTIONS = {
    "deltadq": ["--alpha", "4", "--bits", "1", "--rows-per-mask", "16"],
    "deltadq-rows": ["--alpha", "4", "--bits", "4", "--rows-per-mask", "1", "--parts", "2"],
    "bitdelta": [],
    "lora": [],
}


def tsugiki(*arguments: str | Path) -> str:
    """Standard output of the command line; raises when it fails."""
    command = [sys.executable, "-m", "tsugiki", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def variant_files(
    tiny_base: Path, tiny_tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A directory with one compressed variant per codec, named after it."""
    folder = tmp_path_factory.mktemp("variants")
    adapter = save_adapter(tiny_base, tmp_path_factory.mktemp("adapter"))
    for name in CODECS:
        tuned = adapter if name == "lora" else tiny_tuned
        out = folder / f"{name}.safetensors"
        codec = name.split("-")[0]
        arguments = ["compress", codec, "--base", tiny_base, "--tuned", tuned, "--out", out]
        tsugiki(*arguments, *OPTIONS[name])
    return folder


@pytest.fixture(scope="session")
def checkpoints(
    tiny_base: Path, variant_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Plain transformers models of the base ("") and of every decompressed variant, float32."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {"": tiny_base}
    for file in sorted(variant_files.glob("*.safetensors")):
        paths[file.stem] = folder / file.stem
        tsugiki("decompress", file, "--base", tiny_base, "--out", paths[file.stem])
    return {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for name, path in paths.items()
    }


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def serve(tiny_base: Path, variant_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """`with serve(*flags) as url`: a float32 server of its own variants directory."""

    def start(*flags: str) -> Any:
        folder = tmp_path_factory.mktemp("server")
        served = folder / "variants"
        served.mkdir()
        for file in variant_files.glob("*.safetensors"):
            (served / file.name).write_bytes(file.read_bytes())
        common = ["--dtype", "float32", "--kv-memory", "16MiB"]
        return running_server(tiny_base, served, folder / "log", [*common, *flags])

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[str]:
    """The URL of one shared server."""
    with serve() as url:
        yield url


@pytest.fixture(scope="session")
def base_id(server: str) -> str:
    """The base's model id."""
    import httpx

    models = httpx.get(f"{server}/v1/models").json()["data"]
    return str(next(m["id"] for m in models if m["parent"] is None))
