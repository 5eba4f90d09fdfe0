"""The whole server in this process, on a GPU or with one that the executor plays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import served
from tests.served import Chosen
from tsugiki.config import ServeConfig

PROMPTS = [[0, *range(20, 25)], [0, *range(40, 61)]]
TOKENS = 6


@dataclass(frozen=True)
class Machine:
    """What --device and --kernels mean to a server under test."""

    device: str
    chosen: Chosen


@contextmanager
def serving(
    base: Path,
    variants: Path,
    cache: Path,
    machine: Machine,
    *,
    dtype: str = "float32",
    variant_memory: int = 2**30,
) -> Iterator[str]:
    """The URL of a server in this process on that machine."""
    config = ServeConfig(
        base=str(base),
        variants=variants,
        served_model_name="base",
        device=machine.device,
        dtype=dtype,
        kernels="cuda",
        drain_seconds=1,
        kv_memory=2**20,
        variant_memory=variant_memory,
        max_model_len=128,
        cache_dir=cache,
    )
    with served.serving(config, machine.chosen) as url:
        yield url


def answers(
    url: str, models: Sequence[str], prompts: Sequence[list[int]] = PROMPTS
) -> list[dict[str, Any]]:
    """All prompts of these models, at once."""
    return served.answers(url, models, prompts, TOKENS)
