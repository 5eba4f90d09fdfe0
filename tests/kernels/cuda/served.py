"""The whole server in this process, its GPU played by the executor, and what it answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import served
from tests.served import Chosen
from tsugiki.config import ServeConfig

PROMPTS = [[0, *range(20, 25)], [0, *range(40, 61)]]
TOKENS = 6


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
    with served.serving(config, chosen) as url:
        yield url


def answers(
    url: str, models: Sequence[str], prompts: Sequence[list[int]] = PROMPTS
) -> list[dict[str, Any]]:
    """All prompts of these models, at once."""
    return served.answers(url, models, prompts, TOKENS)
