"""The whole server in this process, its GPU played by the executor, and what it answers."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki_kernels.select import Choice

PROMPTS = [[0, *range(20, 25)], [0, *range(40, 61)]]
TOKENS = 6

Chosen = Callable[[str, str, Path], Choice]


@contextmanager
def serving(
    base: Path,
    variants: Path,
    cache: Path,
    chosen: Chosen,
    *,
    dtype: str = "float32",
    variant_memory: int = 2**30,
) -> Iterator[str]:
    """The URL of a server in this process with the kernels that `chosen` gives."""
    config = ServeConfig(
        base=str(base),
        variants=variants,
        served_model_name="base",
        device="cpu",
        dtype=dtype,
        kernels="cuda",
        drain_seconds=1,
        kv_memory=2**20,
        variant_memory=variant_memory,
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


async def answers(
    url: str, models: Sequence[str], prompts: Sequence[list[int]] = PROMPTS
) -> list[dict[str, Any]]:
    """All prompts of these models, at once."""
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

        return await asyncio.gather(*(ask(m, p) for m in models for p in prompts))
