"""A real server process on the tiny base with one variant of each codec."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.adapters import save_adapter
from benchmarks.server import running_server
from tests.served import serving
from tsugiki.cli import main
from tsugiki.config import ServeConfig

CODECS = ("deltadq", "deltadq-rows", "bitdelta", "lora")
OPTIONS = {
    "deltadq": ["--alpha", "4", "--bits", "1", "--rows-per-mask", "16"],
    "deltadq-rows": ["--alpha", "4", "--bits", "4", "--rows-per-mask", "1", "--parts", "2"],
    "bitdelta": [],
    "lora": [],
}


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
        assert main([*map(str, arguments), *OPTIONS[name]]) == 0
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
        arguments = ["decompress", file, "--base", tiny_base, "--out", paths[file.stem]]
        assert main(list(map(str, arguments))) == 0
    return {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for name, path in paths.items()
    }


@pytest.fixture(scope="session")
def directory(variant_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A directory of variants for one server: it keeps its store there."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("server") / "variants"
        shutil.copytree(variant_files, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def serve(tiny_base: Path, directory: Callable[[], Path]) -> Callable[..., Any]:
    """`with serve(*flags) as url`: a float32 server, a process of its own."""

    def start(*flags: str) -> Any:
        folder = directory()
        common = ["--dtype", "float32", "--kv-memory", "16MiB"]
        return running_server(tiny_base, folder, folder.parent / "log", [*common, *flags])

    return start


@pytest.fixture(scope="session")
def serve_here(tiny_base: Path, directory: Callable[[], Path]) -> Callable[..., Any]:
    """`with serve_here(**settings) as url`: a float32 server in this process."""

    def start(**settings: Any) -> Any:
        common = {"dtype": "float32", "kv_memory": 2**24, "drain_seconds": 1}
        config = ServeConfig(base=str(tiny_base), variants=directory(), **(common | settings))
        return serving(config)

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any]) -> Iterator[str]:
    """The URL of one shared server."""
    with serve() as url:
        yield url


@pytest.fixture(scope="session")
def base_id(server: str) -> str:
    """The base's model id."""
    import httpx

    models = httpx.get(f"{server}/v1/models").json()["data"]
    return str(next(m["id"] for m in models if m["parent"] is None))
