"""Factors as a variant: they take the place of the base's own; laws, refit, other codecs beside."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsugiki.cli import main
from tsugiki.codecs import artifact
from tsugiki.codecs.base import ModuleStats, Packed, PlacedPacked
from tsugiki.codecs.caldera import CODEC, unpacked
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.retune import TRAINABLE
from tsugiki.compress.decompress import decompress
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress_base.caldera import Settings
from tsugiki.compress_base.caldera_job import CalderaBaseJob, caldera_base
from tsugiki.errors import CompressionRefused, InvalidArtifact, Unsupported
from tsugiki.model.base_form import lattice_kernels
from tsugiki_kernels.check_deltas import check_delta
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.reference import ReferenceBackend

QUIET = Progress(quiet=True)
OWN = LowRankDelta(torch.ones(2, 64), torch.ones(24, 2), 1.0, None)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refitted(bits: int, rank: int = 6, stats: ModuleStats | None = None) -> tuple[Tensor, Packed]:
    """A backbone, and the factors that bring it to a random weight."""
    backbone = random(24, 64, seed=1)
    tuned = backbone + random(24, 6, seed=2) @ random(6, 64, seed=3)
    options = {"rank": rank, "factor_bits": bits, "name": "linear"}
    return backbone, CODEC.compress(backbone, tuned, stats, options)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_what_kernels_add_to_the_backbone_is_the_effective_weight(bits: int) -> None:
    backbone, packed = refitted(bits)
    CODEC.validate(packed)
    part = PlacedPacked(8, packed, random(24, seed=4), None, OWN)
    delta = CODEC.resident(part, torch.float32, MaskCache())
    check_delta(delta)
    kernels = ReferenceBackend()
    x, out = random(5, 64, seed=8), random(5, 40, seed=9)
    expected = out.clone()
    change = CODEC.effective(backbone, packed).weight - backbone
    expected[1:4, 8:32] += x[1:4] @ change.T + random(24, seed=4)
    kernels.apply(x, out, [kernels.stage([Placed(8, delta)])], [(1, 4)])
    assert torch.allclose(out, expected, atol=CODEC.tolerance * float(expected.abs().max()))


def test_factors_find_a_change_of_their_rank_and_take_their_bytes() -> None:
    errors = []
    for bits in (16, 8, 4):
        backbone, packed = refitted(bits)
        true = random(24, 6, seed=2) @ random(6, 64, seed=3)
        found = CODEC.effective(backbone, packed).weight - backbone
        errors.append(float((found - true).norm() / true.norm()))
        assert packed.nbytes == 6 * (24 + 64) * bits // 8 + 2 * 6 * 2
    assert errors[0] < 2e-3 < errors[1] < 0.02 < errors[2] < 0.2


def test_inputs_that_never_occur_cost_nothing() -> None:
    gram = torch.diag(torch.cat([torch.full((16,), 100.0), torch.zeros(48)]))
    stats = ModuleStats(torch.zeros(64), gram.diagonal(), 10, gram)
    true = random(24, 6, seed=2) @ random(6, 64, seed=3)
    errors = []
    for given in (None, stats):
        backbone, packed = refitted(8, rank=3, stats=given)
        left = backbone + true - CODEC.effective(backbone, packed).weight
        errors.append(float(left[:, :16].norm() / true[:, :16].norm()))
    assert errors[1] < 0.8 * errors[0]


def test_a_module_without_factors_keeps_the_base_s_own() -> None:
    zero = CODEC.zero((24, 64))
    CODEC.validate(zero)
    assert not CODEC.changes(zero)
    bias = random(24, seed=5)
    delta = CODEC.resident(PlacedPacked(0, zero, bias, None, OWN), torch.float32, MaskCache())
    assert torch.equal(delta.a, OWN.a)
    assert delta.bias is bias
    assert torch.equal(CODEC.effective(torch.ones(24, 64), zero).weight, torch.ones(24, 64))


def test_damaged_modules_and_options_are_refused_by_name() -> None:
    backbone, packed = refitted(4)
    with pytest.raises(InvalidArtifact, match="'factor_bits' is 5"):
        CODEC.parts((24, 64), {"rank": 6, "factor_bits": 5})
    with pytest.raises(InvalidArtifact, match="rank"):
        CODEC.parts((24, 64), {"rank": 25, "factor_bits": 4})
    with pytest.raises(InvalidArtifact, match="lattice backbone"):
        CODEC.resident(PlacedPacked(0, packed), torch.float32, MaskCache())
    with pytest.raises(CompressionRefused, match="--factor-bits is 5"):
        CODEC.compress(backbone, backbone + 1, None, {"rank": 4, "factor_bits": 5})
    with pytest.raises(InvalidArtifact, match="no embeddings"):
        CODEC.lookup(packed, torch.tensor([0]))


@pytest.fixture(scope="module")
def variant_file(
    caldera_directory: Path, tuned_copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("variant") / "tuned.safetensors"
    asked = ["compress", "caldera", "--base", str(caldera_directory), "--tuned", str(tuned_copy)]
    assert main([*asked, "--out", str(out), "--rank", "8", "--probe", "0"]) == 0
    return out


def test_a_refitted_variant_is_served_as_transformers_runs_it(
    caldera_directory: Path,
    variant_file: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    checkpoint = tmp_path / "decompressed"
    variant = open_variant(variant_file, str(caldera_directory), tmp_path)
    decompress(variant, checkpoint, torch.float32, QUIET)
    found = served(caldera_directory, variant_file)
    assert torch.allclose(found, oracle(checkpoint), atol=1e-4)
    assert not torch.allclose(found, served(caldera_directory), atol=0.1)
    header = artifact.read_header(variant_file)
    assert header.role == "parameters"
    assert header.options == {"factor_bits": 4, "rank": 8}


@pytest.mark.parametrize(("codec", "options"), [("bitdelta", {}), ("lora", {"rank": 4})])
def test_other_codecs_serve_beside_the_base_s_own_factors(
    codec: str,
    options: dict[str, int],
    caldera_directory: Path,
    tuned_copy: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    file = tmp_path / "other.safetensors"
    compress(CompressJob(codec, caldera_directory, tuned_copy, file, options), QUIET)
    checkpoint = tmp_path / "decompressed"
    variant = open_variant(file, str(caldera_directory), tmp_path)
    decompress(variant, checkpoint, torch.float32, QUIET)
    assert torch.allclose(served(caldera_directory, file), oracle(checkpoint), atol=1e-4)


def test_factors_of_one_of_the_fused_linears_leave_the_others_theirs(
    caldera_directory: Path,
    variant_file: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    found = artifact.read(variant_file)
    kept = {
        n: p for n, p in found.modules.items() if n.endswith(("k_proj.weight", "up_proj.weight"))
    }
    file = tmp_path / "part.safetensors"
    header = found.header
    spec = artifact.ArtifactSpec(header.codec, header.base, "parameters", created_by="test")
    artifact.write(file, spec, kept)
    checkpoint = tmp_path / "decompressed"
    variant = open_variant(file, str(caldera_directory), tmp_path)
    decompress(variant, checkpoint, torch.float32, QUIET)
    assert torch.allclose(served(caldera_directory, file), oracle(checkpoint), atol=1e-4)
    assert all(unpacked(packed).rank == 8 for packed in kept.values())


def test_a_base_without_factors_of_its_own_has_slots_too(
    tiny_base: Path,
    tiny_tuned: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    base, file, checkpoint = (tmp_path / name for name in ("base", "v.safetensors", "decompressed"))
    caldera_base(CalderaBaseJob(tiny_base, base, Settings(rank=0)), QUIET)
    compress(CompressJob("caldera", base, tiny_tuned, file, {"rank": 4}), QUIET)
    decompress(open_variant(file, str(base), tmp_path), checkpoint, torch.float32, QUIET)
    found = served(base, file)
    assert torch.allclose(found, oracle(checkpoint), atol=1e-4)
    assert not torch.allclose(found, served(base), atol=0.1)


def test_a_dense_base_has_no_backbone(tiny_base: Path, tiny_tuned: Path, tmp_path: Path) -> None:
    arguments = ["compress", "caldera", "--base", str(tiny_base), "--tuned", str(tiny_tuned)]
    assert main([*arguments, "--out", str(tmp_path / "y.safetensors")]) == 1


def test_kernels_without_lattices_refuse_the_base() -> None:
    class Bare:
        name = "bare"

    with pytest.raises(Unsupported, match="the bare kernels cannot read a CALDERA base"):
        lattice_kernels(Bare())  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [4, 16])
def test_repair_trains_the_factors_and_keeps_their_bytes(bits: int) -> None:
    backbone, packed = refitted(bits)
    change = TRAINABLE["caldera"](packed, torch.float32)
    assert not bool(change(random(3, 64, seed=6)).any())
    with torch.no_grad():
        for parameter in change.kinds().values():
            parameter += 0.3 * random(*parameter.shape, seed=7)
    again = change.pack()
    assert again.nbytes == packed.nbytes
    before, after = (CODEC.effective(backbone, p).weight - backbone for p in (packed, again))
    x = random(3, 64, seed=8)
    wanted = x @ before.T + change(x).detach()  # factors are rounded whole, not their change
    assert float((x @ after.T - wanted).norm() / wanted.norm()) < {4: 0.2, 16: 2e-3}[bits]
