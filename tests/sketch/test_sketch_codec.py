"""Codebooks as a variant: the weight law, projection by least squares, the oracle law, refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsugiki.cli import main
from tsugiki.codecs import artifact
from tsugiki.codecs.base import ModuleStats, Packed, PlacedPacked
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.sketch import CODEC, pack
from tsugiki.codecs.sketch_cells import cell_sums, cells_of
from tsugiki.compress.decompress import decompress
from tsugiki.compress.greedy import GreedyDecoder
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.compress_base.sensitivity import indifferent
from tsugiki.compress_base.sketch import sketch_linear
from tsugiki.errors import CompressionRefused, InvalidArtifact, Unsupported
from tsugiki.model.base_form import codebook_kernels
from tsugiki.model.loader import load_base
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.check_deltas import check_delta
from tsugiki_kernels.codebooks import CodebookWeight, looked_up
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.reference import ReferenceBackend

QUIET = Progress(quiet=True)
FORMS = [(2, 1), (3, 4), (4, 1), (4, 8)]
OPTIONS = {"bits": 4, "groups": 2}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sketched(bits: int, groups: int, shape: tuple[int, int] = (24, 64)) -> CodebookWeight:
    weight = random(*shape, seed=bits * groups)
    return sketch_linear(weight, indifferent(shape[1]), SketchSettings(bits, groups)).weight


def projected(weight: CodebookWeight, value_bits: int, seed: int = 7) -> tuple[Tensor, Packed]:
    """The dense base, and a random fine-tune of it packed."""
    base = looked_up(weight.index, weight.codebooks)
    options = {
        "bits": weight.index.bits,
        "groups": weight.index.groups,
        "value_bits": value_bits,
        "name": "linear",
    }
    tuned = base + 0.1 * random(*base.shape, seed=seed)
    return base, CODEC.compress(base, tuned, None, options)


@pytest.mark.parametrize(("bits", "groups"), FORMS)
def test_the_dense_weight_tells_the_index_map(bits: int, groups: int) -> None:
    weight = sketched(bits, groups)
    found = cells_of(looked_up(weight.index, weight.codebooks), bits, groups)
    assert torch.equal(found.codes, weight.index.codes)


@pytest.mark.parametrize("value_bits", [4, 8, 16])
@pytest.mark.parametrize(("bits", "groups"), FORMS)
def test_what_kernels_add_is_the_effective_weight(bits: int, groups: int, value_bits: int) -> None:
    weight = sketched(bits, groups)
    base, packed = projected(weight, value_bits)
    CODEC.validate(packed)
    part = PlacedPacked(8, packed, None, weight.index)
    delta = CODEC.resident(part, torch.float32, MaskCache())
    check_delta(delta)
    kernels = ReferenceBackend()
    x, out = random(5, 64, seed=8), random(5, 40, seed=9)
    expected = out.clone()
    expected[1:4, 8:32] += x[1:4] @ (CODEC.effective(base, packed).weight - base).T
    kernels.apply(x, out, [kernels.stage([Placed(8, delta)])], [(1, 4)])
    assert torch.allclose(out, expected, atol=CODEC.tolerance * float(expected.abs().max()))


def test_a_cell_takes_the_mean_weighted_by_its_inputs() -> None:
    weight = sketched(4, 2)
    base = looked_up(weight.index, weight.codebooks)
    tuned = base + 0.1 * random(24, 64, seed=3)
    heavy = torch.rand(64, generator=torch.Generator().manual_seed(4)) ** 2 + 1e-3
    stats = ModuleStats(torch.zeros(64), heavy, 10)
    found = CODEC.compress(base, tuned, stats, {**OPTIONS, "value_bits": 16})
    left = tuned - CODEC.effective(base, found).weight
    # least squares leaves no error that the weights of a cell could see
    assert float(cell_sums(weight.index, left * heavy).abs().max()) < 1e-3


def test_more_bits_for_the_change_lose_less_of_it() -> None:
    weight = sketched(4, 2)
    exact = None
    errors = []
    for bits in (16, 8, 4):
        base, packed = projected(weight, bits)
        change = CODEC.effective(base, packed).weight - base
        exact = change if exact is None else exact
        errors.append(float((change - exact).norm() / exact.norm()))
    assert errors[0] < errors[1] < 0.01 < errors[2] < 0.15
    assert [projected(weight, bits)[1].nbytes for bits in (16, 8, 4)] == [
        24 * 32 * 2,
        24 * 32 + 24 * 2,
        24 * 32 // 2 + 24 * 2,
    ]


def test_a_module_of_nothing_changes_nothing() -> None:
    weight = sketched(4, 2)
    base = looked_up(weight.index, weight.codebooks)
    zero = CODEC.zero((24, 64))
    CODEC.validate(zero)
    assert not CODEC.changes(zero)
    assert torch.equal(CODEC.effective(base, zero).weight, base)
    delta = CODEC.resident(PlacedPacked(0, zero, None, weight.index), torch.float32, MaskCache())
    assert not bool(delta.values.any())


def test_what_does_not_fit_is_refused_by_name() -> None:
    weight = sketched(4, 2)
    base, packed = projected(weight, 8)
    with pytest.raises(CompressionRefused, match="compress-base sketch"):
        CODEC.compress(random(24, 64, seed=1), base, None, OPTIONS)
    with pytest.raises(CompressionRefused, match="--value-bits is 5"):
        pack(torch.zeros(weight.index.codebook_shape), weight.index, 5, "linear")
    with pytest.raises(CompressionRefused, match="NaN"):
        pack(torch.full(weight.index.codebook_shape, torch.nan), weight.index, 8, "linear")
    with pytest.raises(InvalidArtifact, match="this base is not sketched"):
        CODEC.resident(PlacedPacked(0, packed), torch.float32, MaskCache())
    other = sketched(4, 4).index
    with pytest.raises(InvalidArtifact, match="this base has 4 and 4"):
        CODEC.resident(PlacedPacked(0, packed, None, other), torch.float32, MaskCache())
    with pytest.raises(InvalidArtifact, match="expected 4, 8 or 16"):
        CODEC.parts((24, 64), {**packed.options, "value_bits": 7})
    with pytest.raises(InvalidArtifact, match="no embeddings"):
        CODEC.lookup(packed, torch.tensor([0]))


@pytest.fixture(scope="module")
def variant_file(
    sketched_base: Path, tuned_copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("variant") / "tuned.safetensors"
    arguments = ["compress", "sketch", "--base", str(sketched_base), "--tuned", str(tuned_copy)]
    assert main([*arguments, "--out", str(out), "--probe", "0"]) == 0
    return out


def test_a_projected_variant_is_served_as_transformers_runs_it(
    sketched_base: Path,
    variant_file: Path,
    tuned_copy: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    checkpoint = tmp_path / "decompressed"
    decompress(
        open_variant(variant_file, str(sketched_base), tmp_path), checkpoint, torch.float32, QUIET
    )
    found = served(sketched_base, variant_file)
    assert torch.allclose(found, oracle(checkpoint), atol=1e-4)
    assert not torch.allclose(found, served(sketched_base), atol=0.1)
    assert artifact.read_header(variant_file).role == "parameters"


def test_a_fine_tune_of_a_dense_base_cannot_be_projected(
    tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    job = CompressJob("sketch", tiny_base, tiny_tuned, tmp_path / "x.safetensors", OPTIONS)
    with pytest.raises(CompressionRefused, match="is not sketched"):
        compress(job, QUIET)
    arguments = ["compress", "sketch", "--base", str(tiny_base), "--tuned", str(tiny_tuned)]
    assert main([*arguments, "--out", str(tmp_path / "y.safetensors")]) == 1


def test_other_codecs_serve_on_a_sketched_base_too(
    sketched_base: Path,
    tuned_copy: Path,
    tmp_path: Path,
    oracle: Callable[[Path], Tensor],
    served: Callable[..., Tensor],
) -> None:
    file = tmp_path / "signs.safetensors"
    compress(CompressJob("bitdelta", sketched_base, tuned_copy, file), QUIET)
    checkpoint = tmp_path / "decompressed"
    decompress(open_variant(file, str(sketched_base), tmp_path), checkpoint, torch.float32, QUIET)
    assert torch.allclose(served(sketched_base, file), oracle(checkpoint), atol=1e-4)


def test_kernels_without_codebooks_refuse_the_base(sketched_base: Path) -> None:
    class Bare:
        name = "bare"

    with pytest.raises(Unsupported, match="the bare kernels cannot read a sketched base"):
        codebook_kernels(Bare())  # type: ignore[arg-type]


def values_from_page(packed: Packed) -> Tensor:
    """docs/format.md 5.5, entry by entry: float32 [out, groups, entries]."""
    bits, rows = packed.options["value_bits"], packed.shape[0]
    count = packed.options["groups"] << packed.options["bits"]
    gain = torch.tensor(packed.options["gain"], dtype=torch.float32)
    if bits == 16:
        return (packed.tensors["values"].float() * gain).view(rows, packed.options["groups"], -1)
    found = torch.empty(rows, count)
    for r in range(rows):
        number = int.from_bytes(bytes(packed.tensors["codes"][r].tolist()), "little")
        codes = [number >> (i * bits) & ((1 << bits) - 1) for i in range(count)]
        step = packed.tensors["step"][r].float() * gain
        found[r] = (torch.tensor(codes) - (1 << (bits - 1))) * step
    return found.view(rows, packed.options["groups"], -1)


@pytest.mark.parametrize("value_bits", [4, 8, 16])
def test_the_page_is_enough_to_decode_a_module(value_bits: int) -> None:
    weight = sketched(3, 4)
    base, packed = projected(weight, value_bits)
    expected = base + looked_up(weight.index, values_from_page(packed))
    assert torch.equal(CODEC.effective(base, packed).weight, expected)


@pytest.mark.compiler
def test_a_probe_is_answered_by_the_decoder_that_serves(
    sketched_base: Path, variant_file: Path, cpu_backend: CpuBackend
) -> None:
    base = load_base(sketched_base, dtype=torch.float32, kernels=cpu_backend)
    decoder = GreedyDecoder(base)
    answer = decoder.answer(decoder.stage(variant_file), [3, 4, 5], 2, ends=())
    assert len(answer) <= 2
    assert all(0 <= token < 512 for token in answer)
