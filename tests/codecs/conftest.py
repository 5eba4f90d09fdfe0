"""Packed modules of every codec and layout, and the backends they are held to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.codecs import CODECS
from tsugiki.codecs.artifact import ArtifactSpec, BaseRef, write
from tsugiki.codecs.base import ModuleStats, Packed
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.select import backend

FINGERPRINT = "sha256:" + "ab" * 32
BASE = BaseRef("tiny", "LlamaForCausalLM", FINGERPRINT)

# every codec with the options that change what is stored; several reach ragged tiles and groups
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "deltadq": ("deltadq", {"alpha": 4}),
    "deltadq-paper": (
        "deltadq",
        {"alpha": 8, "bits": 4, "grid": "minmax", "group_size": 16, "rows_per_mask": 1},
    ),
    "deltadq-parts": ("deltadq", {"alpha": 4, "bits": 4, "parts": 4, "rows_per_mask": 8}),
    "deltadq-only-parts": ("deltadq", {"alpha": 4, "bits": 2, "parts": 4, "rows_per_mask": 3}),
    "deltadq-3-bit": ("deltadq", {"alpha": 5, "bits": 3, "group_size": 15, "rows_per_step": 7}),
    "deltadq-8-bit": ("deltadq", {"alpha": 2, "bits": 8, "rows_per_mask": 32, "bias_bits": 0}),
    "bitdelta": ("bitdelta", {}),
    "bitdelta-plain": ("bitdelta", {"gain_matching": False, "bias_bits": 0}),
    "lora": ("lora", {"rank": 4, "dtype": "float32"}),
    "lora-16-bit": ("lora", {"rank": 3, "dtype": "bfloat16"}),
    "saten": ("saten", {"rank": 3, "density": 0.1, "rows_per_step": 16}),
    "saten-matrix": (
        "saten",
        {"modes": "matrix", "rank": 5, "density": 0.05, "core_bits": 16, "value_bits": 16},
    ),
    "saten-vector": ("saten", {"modes": "vector", "relative_error": 0.3, "core_bits": 4}),
    "saten-2-of-4": ("saten", {"rank": 2, "pattern": "2:4", "value_bits": 8}),
    "dense": ("dense", {"mode": "delta", "dtype": "float32"}),
    "dense-8-bit": ("dense", {"mode": "delta", "dtype": "int8"}),
}


@dataclass(frozen=True)
class Example:
    """A module, its fine-tune, and what a codec made of the difference."""

    base: Tensor
    tuned: Tensor
    stats: ModuleStats
    packed: Packed


MakeExample = Callable[..., Example]
Write = Callable[..., Path]


def make_example(
    recipe: str, shape: tuple[int, int] = (40, 52), seed: int = 0, name: str = "m.weight"
) -> Example:
    """A random module whose fine-tune moved it by a few percent, packed by a recipe."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    tuned = base + 0.03 * torch.randn(shape, generator=generator)
    stats = ModuleStats(torch.randn(shape[1], generator=generator), torch.ones(shape[1]), 100)
    codec, options = RECIPES[recipe]
    packed = CODECS[codec].compress(base, tuned, stats, {**options, "name": name})
    return Example(base, tuned, stats, packed)


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """The name of every recipe in turn."""
    return str(request.param)


@pytest.fixture
def example() -> MakeExample:
    """`example(recipe, shape=(40, 52), seed=0, name="m.weight")`."""
    return make_example


@pytest.fixture
def spec() -> Callable[..., ArtifactSpec]:
    """`spec(codec="deltadq", **fields)`: what a file says beside its modules."""

    def make(codec: str = "deltadq", **fields: Any) -> ArtifactSpec:
        return ArtifactSpec(codec=codec, base=BASE, created_by="tests", **fields)

    return make


@pytest.fixture
def small_modules() -> Mapping[str, Packed]:
    """Two linears and a norm."""
    norm = CODECS["dense"].compress(
        torch.ones(52), torch.linspace(0.5, 1.5, 52), None, {"name": "norm.weight"}
    )
    linears = {n: make_example("deltadq", name=n).packed for n in ("a.weight", "b.weight")}
    return {**linears, "norm.weight": norm}


@pytest.fixture
def small_file(
    tmp_path: Path, spec: Callable[..., ArtifactSpec], small_modules: Mapping[str, Packed]
) -> Path:
    """A valid variant file of about 2 KB."""
    path = tmp_path / "small.safetensors"
    write(path, spec(), small_modules)
    return path


@pytest.fixture(scope="session")
def cpu_kernels() -> KernelBackend:
    """The compiled backend."""
    try:
        return backend("cpu", "cpu")
    except BackendUnavailable as error:
        pytest.skip(f"the CPU kernels are not to be had here: {error}")


@pytest.fixture(params=["reference", "cpu"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every backend that this machine can offer; without a compiler the reference alone."""
    try:
        return backend(request.param, "cpu")
    except BackendUnavailable as error:
        pytest.skip(f"the {request.param} kernels are not to be had here: {error}")
