"""The whole server with --kernels cuda, its GPU played by the executor, against the reference.

HTTP in, HTTP out: base, both layouts of deltadq, bitdelta and LoRA mixed in the same steps.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.adapters import save_adapter
from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.device import CpuDevice
from tsugiki_kernels.reference import ReferenceBackend
from tsugiki_kernels.select import Choice

PROMPTS = [[0, *range(20, 25)], [0, *range(40, 61)]]
MODELS = ["base", "tiles", "rows", "signs", "adapter"]
TOKENS = 6
QUIET = Progress(quiet=True)

Chosen = Callable[[str, str, Path], Choice]


@pytest.fixture(scope="module")
def variants(tiny_base: Path, tiny_tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one variant of each kind."""
    folder = tmp_path_factory.mktemp("cuda-variants")
    adapter = save_adapter(tiny_base, tmp_path_factory.mktemp("cuda-adapter"))
    jobs: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "tiles": ("deltadq", tiny_tuned, {"alpha": 4, "bits": 1, "rows_per_mask": 16}),
        "rows": ("deltadq", tiny_tuned, {"alpha": 4, "bits": 4, "rows_per_mask": 1, "parts": 2}),
        "signs": ("bitdelta", tiny_tuned, {}),
        "adapter": ("lora", adapter, {}),
    }
    for name, (codec, tuned, options) in jobs.items():
        out = folder / f"{name}.safetensors"
        compress(CompressJob(codec, tiny_base, tuned, out, options=options), QUIET)
    return folder


@contextmanager
def serving(base: Path, variants: Path, cache: Path, chosen: Chosen) -> Iterator[str]:
    """The URL of a server in this process with the kernels that `chosen` gives."""
    config = ServeConfig(
        base=str(base),
        variants=variants,
        served_model_name="base",
        device="cpu",
        dtype="float32",
        kernels="cuda",
        drain_seconds=1,
        kv_memory=2**20,
        max_model_len=128,
        cache_dir=cache,
    )
    server = LiveServer(create_app(create_engine(config, choose_kernels=chosen), config))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.wait_until_started()
        yield server.url
    finally:
        server.should_exit = True
        thread.join()


async def answers(url: str) -> list[dict[str, Any]]:
    """All prompts of all models, at once."""
    async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:

        async def ask(model: str, prompt: list[int]) -> dict[str, Any]:
            body = {
                "model": model,
                "prompt": prompt,
                "max_tokens": TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "echo": True,
                "logprobs": 1,
                "return_token_ids": True,
            }
            answer = await client.post("/v1/completions", json=body)
            answer.raise_for_status()
            choice: dict[str, Any] = answer.json()["choices"][0]
            return choice

        return await asyncio.gather(*(ask(m, p) for m in MODELS for p in PROMPTS))


@pytest.fixture(scope="module")
def expected(
    tiny_base: Path, variants: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What the reference answers."""
    cache = tmp_path_factory.mktemp("cache")
    with serving(tiny_base, variants, cache, lambda *_: Choice(ReferenceBackend())) as url:
        return asyncio.run(answers(url))


def check(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["token_ids"] == theirs["token_ids"]
        found_logprobs, logprobs = (
            choice["logprobs"]["token_logprobs"][1:] for choice in (mine, theirs)
        )
        assert found_logprobs == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.compiler
def test_a_mixed_batch_on_cuda_kernels_is_answered_as_by_the_reference(
    tiny_base: Path,
    variants: Path,
    tmp_path: Path,
    executor: Launcher,
    expected: list[dict[str, Any]],
) -> None:
    def chosen(name: str, device: str, cache: Path) -> Choice:
        assert name == "cuda"
        return Choice(CudaBackend(executor, CpuDevice()))

    with serving(tiny_base, variants, tmp_path, chosen) as url:
        assert httpx.get(f"{url}/health").json()["kernels"] == "cuda"
        check(asyncio.run(answers(url)), expected)
