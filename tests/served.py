"""A whole server in this process, and what it answers.

An end-to-end test that is not about the process itself needs none of its own: starting one costs
more than most of them ask.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki_kernels.select import Choice, choose

Chosen = Callable[[str, str, Any], Choice]


@contextmanager
def serving(config: ServeConfig, choose_kernels: Chosen = choose) -> Iterator[str]:
    """The URL of a server of these settings, with the kernels that `choose_kernels` gives."""
    server = LiveServer(create_app(create_engine(config, choose_kernels=choose_kernels), config))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        server.wait_until_started()
        yield server.url
    finally:
        server.should_exit = True
        thread.join()


def answers(
    url: str, models: Sequence[str], prompts: Sequence[list[int]], tokens: int
) -> list[dict[str, Any]]:
    """What greedy decoding answers, with log-probabilities of the prompt too: all prompts of these
    models at once, in mixed batches."""
    return asyncio.run(_answers(url, models, prompts, tokens))


async def _answers(
    url: str, models: Sequence[str], prompts: Sequence[list[int]], tokens: int
) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:

        async def ask(model: str, prompt: list[int]) -> dict[str, Any]:
            body = {
                "model": model,
                "prompt": prompt,
                "max_tokens": tokens,
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
