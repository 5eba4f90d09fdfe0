"""`compress-base sketch`: what it writes, that it is the base, and that calibration pays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsugiki.cli import main
from tsugiki.codecs.sketch_cells import cell_sums
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.kmeans import weighted_kmeans
from tsugiki.compress_base.refine import least_squares
from tsugiki.compress_base.sensitivity import Gram, indifferent, sensitivity
from tsugiki.compress_base.sketch import sketch_linear
from tsugiki.compress_base.text import sequences
from tsugiki.errors import CompressionRefused, InvalidRequest, UnsupportedModel
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint, derived_from
from tsugiki.model.loader import load_base
from tsugiki.model.sketched import SketchSettings
from tsugiki_kernels.codebooks import looked_up

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def inputs(width: int, seed: int) -> torch.Tensor:
    """Correlated activations with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    scale = torch.logspace(-1, 1, width)
    return (torch.randn(4 * width, width, generator=generator) @ mix) * scale


def test_kmeans_finds_the_clusters_and_minds_the_weights() -> None:
    values = torch.tensor([[0.0, 0.1, 5.0, 5.1, 9.0, 9.2], [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]])
    weights = torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    found = weighted_kmeans(values, weights, 3)
    expected = torch.tensor([[0.075, 5.05, 9.1], [1.0, 2.0, 3.0]])
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("bits", "groups"), [(2, 1), (3, 2), (4, 1), (4, 8)])
def test_a_sketched_linear_holds_the_nearest_codebook_entries(bits: int, groups: int) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
    found = sketch_linear(weight, indifferent(64), SketchSettings(bits, groups))
    dense = looked_up(found.weight.index, found.weight.codebooks)
    used = cell_sums(found.weight.index, torch.ones_like(weight)) > 0
    books = found.weight.codebooks.float().where(used, torch.inf)
    books = books.repeat_interleave(64 // groups, dim=1)
    nearest = (weight[..., None] - books).abs().amin(2)
    assert torch.allclose((weight - dense).abs(), nearest, atol=1e-6)
    assert found.error == pytest.approx(float((weight - dense).square().sum()))


def test_the_sweep_with_feedback_costs_less_output_than_rounding() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    x = inputs(64, 3)
    gram = Gram(64)
    gram.add(x)
    settings = SketchSettings(3, 1)
    errors = []
    for costs in (indifferent(64), sensitivity(gram.mean())):
        found = sketch_linear(weight, costs, settings).weight
        errors.append(float((x @ (looked_up(found.index, found.codebooks) - weight).T).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_codes_and_codebooks_that_were_fitted_to_each_other_cost_less_output() -> None:
    weight = torch.randn(150, 256, generator=torch.Generator().manual_seed(6))
    gram = Gram(256)
    gram.add(inputs(256, 7))
    costs = sensitivity(gram.mean())
    errors = []
    for rounds in (0, 1, 3):
        found = sketch_linear(weight, costs, SketchSettings(3, 2), rounds=rounds).weight
        error = looked_up(found.index, found.codebooks) - weight
        errors.append(float(((error @ costs.gram) * error).sum()))
    assert errors[2] < errors[1] < 0.95 * errors[0]


def test_least_squares_leaves_no_error_that_a_codebook_could_take_away() -> None:
    generator = torch.Generator().manual_seed(8)
    weight, books = torch.randn(5, 64, generator=generator), torch.zeros(5, 2, 4)
    codes = torch.randint(0, 4, (5, 64), generator=generator)
    gram = Gram(64)
    gram.add(inputs(64, 9))
    costs = sensitivity(gram.mean())
    books = least_squares(weight, codes, books, costs.gram)
    left = weight - books.gather(2, codes.view(5, 2, 32)).flatten(1)
    pull = torch.zeros(5, 2, 4).scatter_add_(
        2, codes.view(5, 2, 32), (left @ costs.gram).view(5, 2, 32)
    )
    scale = float((weight @ costs.gram).abs().max())
    assert float(pull.abs().max()) < 1e-3 * scale


def test_a_channel_that_is_never_used_costs_no_codebook_entry() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(4))
    weight[:, 5] = 100.0
    x = inputs(16, 5)
    x[:, 5] = 0.0
    gram = Gram(16)
    gram.add(x)
    found = sketch_linear(weight, sensitivity(gram.mean()), SketchSettings(4, 1)).weight
    assert float(found.codebooks.float().abs().max()) < 10.0


def test_what_cannot_be_sketched_is_refused_by_name(sketched_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionRefused, match="linear of 60 inputs"):
        sketch_linear(torch.ones(4, 60), indifferent(60), SketchSettings(4, 8))
    with pytest.raises(CompressionRefused, match="NaN"):
        sketch_linear(torch.full((4, 8), torch.nan), indifferent(8), SketchSettings(4, 1))
    with pytest.raises(UnsupportedModel, match="a sketch of 5 bits"):
        SketchSettings(5, 1)
    again = ["compress-base", "sketch", "--base", str(sketched_base), "--out", str(tmp_path / "x")]
    assert main(again) == 1


def test_a_sketched_directory_names_its_origin_and_keeps_the_rest(
    tiny_base: Path, sketched_base: Path
) -> None:
    before, after = open_checkpoint(tiny_base), open_checkpoint(sketched_base)
    assert after.names() == before.names()
    assert derived_from(after.config) == base_fingerprint(before, None)
    assert base_fingerprint(after, None) != base_fingerprint(before, None)
    assert (sketched_base / "tokenizer.json").is_file()
    for name in before.names():
        assert after.shape(name) == before.shape(name)
        if not after.is_compressed(name):
            assert torch.equal(after.tensor(name), before.tensor(name))
    moved = after.tensor(Q_PROJ).float() - before.tensor(Q_PROJ).float()
    assert 0 < float(moved.norm() / before.tensor(Q_PROJ).float().norm()) < 0.2


def test_a_sketched_base_is_served_as_transformers_runs_it(
    sketched_base: Path,
    dense_copy: Path,
    oracle: Callable[[Path], torch.Tensor],
    served: Callable[..., torch.Tensor],
) -> None:
    assert torch.allclose(served(sketched_base), oracle(dense_copy), atol=1e-4)


def test_index_maps_take_the_bytes_of_their_bits(sketched_base: Path, tiny_base: Path) -> None:
    sketched, dense = load_base(sketched_base), load_base(tiny_base)
    form = sketched.decoder.weights.linears["layers.0.gate_up"]
    rows, columns = form.shape
    assert form.nbytes == rows * columns // 2 + rows * 2 * 16 * 2
    assert sketched.nbytes < dense.nbytes
    index = sketched.index_of("model.layers.0.mlp.up_proj.weight")
    assert index is not None
    assert index.shape == (128, 64)
    assert dense.index_of("model.layers.0.mlp.up_proj.weight") is None


def test_damaged_codebooks_and_settings_are_refused_by_name(
    sketched_base: Path, tmp_path: Path
) -> None:
    tensors = load_file(sketched_base / "model.safetensors")
    config = json.loads((sketched_base / "config.json").read_text())
    tensors[f"{Q_PROJ}.codebooks"] = tensors[f"{Q_PROJ}.codebooks"].flip(2)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"q_proj.*does not ascend"):
        load_base(tmp_path)
    config["tsugiki"]["sketch"] = {"bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="expected bits, groups"):
        load_base(tmp_path)


def test_too_little_text_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A server.")
    with pytest.raises(InvalidRequest, match="fewer than one sequence of 64"):
        sequences(text, load_tokenizer(tiny_base), 4, 64)
