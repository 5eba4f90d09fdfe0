"""The solo law on a CALDERA base: a sequence's logits have the same bits alone and mixed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.compressed_base import logits
from tsugiki.codecs import artifact
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.model.loader import BaseModel, load_base
from tsugiki_kernels.cpu.backend import CpuBackend

WANTED = (("caldera", {"rank": 8}), ("caldera", {"rank": 3, "factor_bits": 16}), ("bitdelta", {}))


@pytest.fixture(scope="module")
def files(
    caldera_directory: Path, tuned_copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("variants")
    found = [folder / f"{i}.safetensors" for i in range(len(WANTED))]
    for out, (codec, options) in zip(found, WANTED, strict=True):
        job = CompressJob(codec, caldera_directory, tuned_copy, out, options)
        compress(job, Progress(quiet=True))
    return found


def staged(base: BaseModel, kernels: CpuBackend, files: list[Path]) -> list[ResidentVariant]:
    place = Destination(
        base.layout,
        base.vector,
        base.dtype,
        kernels,
        MaskCache(),
        factors_of=base.factors_of,
    )
    return [stage_variant(artifact.read(file), place) for file in files]


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variants_on_one_backbone_are_the_same_alone_and_mixed(
    caldera_directory: Path, files: list[Path], cpu_backend: CpuBackend, dtype: torch.dtype
) -> None:
    base = load_base(caldera_directory, dtype=dtype, kernels=cpu_backend)
    variants: list[ResidentVariant | None] = [None, *staged(base, cpu_backend, files)]
    mixed = logits(base, variants)
    for variant, found in zip(variants, mixed, strict=True):
        assert torch.equal(found, logits(base, [variant])[0])
    assert len({float(found.sum()) for found in mixed}) == len(variants)


@pytest.mark.compiler
def test_compiled_kernels_serve_what_the_reference_does(
    caldera_directory: Path,
    files: list[Path],
    cpu_backend: CpuBackend,
    served: Callable[..., Tensor],
) -> None:
    for file in (None, files[0]):
        found = served(caldera_directory, file, cpu_backend)
        assert torch.allclose(found, served(caldera_directory, file), atol=2e-4)


def test_a_variant_costs_its_factors_alone(
    caldera_directory: Path, files: list[Path], cpu_backend: CpuBackend
) -> None:
    base = load_base(caldera_directory, dtype=torch.bfloat16, kernels=cpu_backend)
    (variant,) = staged(base, cpu_backend, files[:1])
    inputs = 64 * 3 + 64 + 64 * 2 + 128
    outputs = 64 + 32 + 32 + 64 + 128 + 128 + 64
    norms = 5 * 64 * 2
    assert variant.nbytes < 2 * 8 * (inputs + outputs) * 2 + norms + 4096
