"""The solo law on a sketched base: a sequence's logits have the same bits alone and mixed."""

from collections.abc import Callable, Sequence
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
from tsugiki.model.loader import load_base
from tsugiki_kernels.cpu.backend import CpuBackend

Variants = Sequence[ResidentVariant | None]


@pytest.fixture(scope="module")
def files(
    sketched_base: Path, tuned_copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("variants")
    found = []
    for bits in (4, 8, 16):
        out = folder / f"{bits}.safetensors"
        options = {"bits": 4, "groups": 2, "value_bits": bits}
        compress(
            CompressJob("sketch", sketched_base, tuned_copy, out, options), Progress(quiet=True)
        )
        found.append(out)
    return found


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sketched_variants_are_the_same_alone_and_mixed(
    sketched_base: Path, files: list[Path], cpu_backend: CpuBackend, dtype: torch.dtype
) -> None:
    base = load_base(sketched_base, dtype=dtype, kernels=cpu_backend)
    place = Destination(
        base.layout, base.vector, dtype, cpu_backend, MaskCache(), index_of=base.index_of
    )
    variants: Variants = [None, *(stage_variant(artifact.read(file), place) for file in files)]
    mixed = logits(base, variants)
    for variant, found in zip(variants, mixed, strict=True):
        assert torch.equal(found, logits(base, [variant])[0])
    assert not torch.equal(mixed[0], mixed[1])


@pytest.mark.compiler
def test_compiled_kernels_serve_what_the_reference_does(
    sketched_base: Path,
    files: list[Path],
    cpu_backend: CpuBackend,
    served: Callable[..., Tensor],
) -> None:
    for file in (None, *files):
        found, expected = served(sketched_base, file, cpu_backend), served(sketched_base, file)
        assert torch.allclose(found, expected, atol=2e-4)


def test_a_hundred_variants_cost_their_codebooks_and_one_map(
    sketched_base: Path, files: list[Path], cpu_backend: CpuBackend
) -> None:
    base = load_base(sketched_base, dtype=torch.float32, kernels=cpu_backend)
    place = Destination(
        base.layout, base.vector, torch.float32, cpu_backend, MaskCache(), index_of=base.index_of
    )
    variant = stage_variant(artifact.read(files[1]), place)
    entries = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64) * 2 * 16
    rows = 2 * 512 * 2  # float16 steps
    norms = 5 * 64 * 4
    assert variant.nbytes < entries + rows + norms + 4096
