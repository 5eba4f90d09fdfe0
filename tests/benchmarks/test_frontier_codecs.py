"""The codecs of the frontier keep to their bytes and do what their papers say."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.frontier import calibrated_peers, peers, stored
from benchmarks.frontier.approximation import Approximation, Asked
from benchmarks.frontier.codecs import SIZES, methods
from benchmarks.frontier.entropy import kinds
from benchmarks.frontier.quantizers import binary_entropy, entropy, grouped_minmax, minmax
from benchmarks.frontier.zero_bin import zero_bin
from tsugiki.codecs.base import ModuleStats

ROWS, COLUMNS = 64, 320


def asked(size: float, seed: int = 0, delta: Tensor | None = None) -> Asked:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(ROWS, COLUMNS, generator=generator)
    change = 0.01 * torch.randn(ROWS, COLUMNS, generator=generator) if delta is None else delta
    stats = ModuleStats(torch.ones(COLUMNS), torch.ones(COLUMNS), 10)
    rows = torch.randn(200, COLUMNS, generator=generator) + 0.5
    gram = rows.T @ rows / len(rows)
    name = "model.layers.0.mlp.up_proj.weight"
    return Asked(name, base, base + change, size, seed, stats, gram)


def output_error(found: Approximation | None, case: Asked) -> float:
    """Mean squared error of the linear's outputs."""
    assert found is not None
    assert case.gram is not None
    lost = found.delta - case.delta
    return float(((lost @ case.gram) * lost).sum())


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_codec_takes_no_more_bits_than_it_was_offered(name: str) -> None:
    method = methods()[name]
    taken = [(size, method(asked(size))) for size in SIZES]
    found = [(size, a.bits / (ROWS * COLUMNS)) for size, a in taken if a is not None]
    # a whole survivor or sign scale more; DARE's mask is drawn, its count is not exact
    loose = 1.15 if name in ("dare", "darex-q", "paper-deltadq") else 1.06
    assert all(bits <= loose * size + 100 / (ROWS * COLUMNS) for size, bits in found)
    assert found


def test_a_matrix_of_a_small_share_keeps_one_survivor_in_each_tile_where_there_is_room() -> None:
    found = stored.ours()(replace(asked(0.03), share=0.125))
    assert found is not None
    assert found.bits <= 0.03 * ROWS * COLUMNS
    assert stored.ours()(replace(asked(0.005), share=0.125)) is None


def test_dare_is_unbiased_over_seeds() -> None:
    one = asked(4.0)
    mean = torch.stack([_of(peers.dare, asked(4.0, seed)) for seed in range(200)]).mean(0)
    error = (mean - one.delta).norm() / one.delta.norm()
    assert error < 2 * math.sqrt(3 / 200)  # |D|^2 (1 / keep - 1) / seeds


def _of(method: object, case: Asked) -> Tensor:
    found = method(case) if callable(method) else None
    assert found is not None
    delta: Tensor = found.delta
    return delta


def test_magnitude_keeps_the_largest_entries() -> None:
    case = asked(0.25)
    kept = _of(peers.magnitude, case) != 0
    assert case.delta.abs()[kept].min() >= case.delta.abs()[~kept].max()


def test_mixed_svd_finds_a_delta_of_low_rank() -> None:
    generator = torch.Generator().manual_seed(2)
    low = torch.randn(ROWS, 2, generator=generator) @ torch.randn(2, COLUMNS, generator=generator)
    case = asked(0.4, delta=0.01 * low)
    error = (_of(peers.MixedSvd(), case) - case.delta).norm() / case.delta.norm()
    assert error < 0.02


def test_a_sweep_that_corrects_loses_less_output_than_keeping_the_largest_entries() -> None:
    case = asked(3.0)
    swept = calibrated_peers.deltazip(case)
    assert swept is not None
    assert torch.equal((swept.delta.view(ROWS, -1, 4) != 0).sum(2).amax(), torch.tensor(2))
    top = case.delta.view(ROWS, -1, 4).abs().topk(2, dim=2).indices
    mask = torch.zeros(ROWS, COLUMNS // 4, 4).scatter_(2, top, 1.0).view(ROWS, COLUMNS)
    assert output_error(swept, case) < 0.6 * output_error(
        Approximation(case.delta * mask, 0.0, 0.0), case
    )


def test_darex_rescales_to_the_least_change_of_outputs() -> None:
    case = asked(1.0)
    plain, chosen = peers.dare(case), calibrated_peers.darex_q(case)
    assert output_error(chosen, case) < output_error(plain, case)
    assert chosen is not None
    nudged = Approximation(chosen.delta * 1.05, 0.0, 0.0)
    assert output_error(chosen, case) < output_error(nudged, case)


def test_the_paper_counts_a_quarter_of_what_a_decoder_needs() -> None:
    found = stored.paper_deltadq(asked(0.25))
    assert found is not None
    assert found.bits / found.nominal_bits == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("name", ["ours", "ours-2bit", "zero-bin-1.0", "bitdelta-gain"])
def test_what_is_gain_matched_keeps_the_strength_of_the_delta(name: str) -> None:
    case = asked(1.0)
    overlap = (_of(methods()[name], case) * case.delta).sum() / case.delta.square().sum()
    assert float(overlap) == pytest.approx(1, abs=0.01)


def test_a_zero_bin_restores_the_mean_output_by_its_bias() -> None:
    case = asked(0.25)
    found = zero_bin(1.0)(case)
    assert found is not None
    assert found.bias is not None
    lost = (case.delta - found.delta) @ torch.ones(COLUMNS)
    assert (found.bias - lost).norm() < 0.1 * lost.norm()


def test_minmax_codes_lie_within_half_a_step() -> None:
    values = torch.linspace(-1, 2, 300)[None]
    assert (minmax(values, 4) - values).abs().max() <= 0.1 + 1e-6
    assert (grouped_minmax(values, 8) - values).abs().max() <= 3 / 255
    assert torch.equal(minmax(torch.ones(1, 5), 2), torch.ones(1, 5))


def test_entropies_are_those_of_the_textbook() -> None:
    assert entropy(torch.tensor([5, 5, 5, 5])) == pytest.approx(2)
    assert entropy(torch.tensor([7, 0])) == 0
    assert binary_entropy(0.11) == pytest.approx(0.4999, abs=1e-3)


def test_signs_have_nothing_to_gain_from_a_coder_and_the_noise_of_a_gaussian() -> None:
    one = next(kinds(torch.randn(50_000, generator=torch.Generator().manual_seed(0))))
    assert one.entropy == pytest.approx(1, abs=1e-3)
    assert one.noise == pytest.approx(math.pi / 2 - 1, abs=0.02)
