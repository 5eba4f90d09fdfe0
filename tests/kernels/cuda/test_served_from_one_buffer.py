"""The whole server with a buffer of variants that is too small: they are swapped and moved in it.

The kernels are CUDA's, on a GPU or executed on the CPU. Requests come one at a time: the base's
products are torch's, whose last bits depend on the rows beside. So a variant answers as it did, bit
for bit.
"""

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from benchmarks.adapters import save_adapter
from tests.kernels.cuda.served import PROMPTS, Machine, answers, serving
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.errors import ConfigError
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.device import CpuDevice
from tsugiki_kernels.select import Choice

RANKS = {"small": 16, "middle": 32, "large": 64}


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with variants of three sizes."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, rank in RANKS.items():
        source = save_adapter(tiny_base, tmp_path_factory.mktemp(name), rank=rank, seed=rank)
        out = folder / f"{name}.safetensors"
        compress(CompressJob("lora", tiny_base, source, out, options={}), Progress(quiet=True))
    return folder


def asked(url: str, model: str) -> list[dict[str, Any]]:
    return answers(url, [model], PROMPTS[1:])


def resident_bytes(url: str) -> dict[str, int]:
    cards = httpx.get(f"{url}/v1/variants").json()["data"]
    return {card["name"]: card["resident_bytes"] for card in cards}


def test_a_variant_that_was_moved_answers_as_before(
    tiny_base: Path, adapters: Path, tmp_path: Path, machine: Machine
) -> None:
    with serving(tiny_base, adapters, tmp_path, machine) as url:
        first = {name: asked(url, name) for name in RANKS}
        again = asked(url, "middle")
        sizes = resident_bytes(url)
        assert httpx.get(f"{url}/health").json()["room"]["moves"] == 0
    memory = sizes["middle"] + sizes["large"]
    with serving(tiny_base, adapters, tmp_path, machine, variant_memory=memory) as url:
        for name in RANKS:  # the large one fits where the small one was and what is left, together
            assert asked(url, name) == first[name]
        room = httpx.get(f"{url}/health").json()["room"]
        assert (room["nbytes"], room["beside_bytes"], room["moves"]) == (memory, 0, 2)
        assert asked(url, "middle") == again
        metrics = httpx.get(f"{url}/metrics").text
        assert "tsugiki_variant_room_moves_total 2.0" in metrics


class FullDevice(CpuDevice):
    """Has no memory left for so much."""

    def empty(self, nbytes: int) -> Tensor:
        raise torch.OutOfMemoryError(f"tried to allocate {nbytes} bytes")


@pytest.mark.compiler
def test_memory_for_variants_that_the_device_does_not_have_is_refused_at_start(
    tiny_base: Path, adapters: Path, tmp_path: Path, executor: Launcher
) -> None:
    def chosen(*_: object) -> Choice:
        return Choice(CudaBackend(executor, FullDevice()))

    with (
        pytest.raises(ConfigError, match=r"--variant-memory 4096 does not fit .* lower it"),
        serving(tiny_base, adapters, tmp_path, Machine("cpu", chosen), variant_memory=4096),
    ):
        pass
