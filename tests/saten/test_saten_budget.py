"""Ranks and densities under a number of bytes: what is on a menu, and what is taken."""

import pytest
import torch
from torch import Tensor

from tsugiki.codecs.saten import CODEC
from tsugiki.codecs.saten_budget import Choice, allocate, menu


def change(seed: int = 0) -> Tensor:
    """A strong low rank, a few large entries, noise."""
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(48, 4, generator=g) @ torch.randn(4, 64, generator=g)
    spikes = 30 * torch.randn(48, 64, generator=g) * (torch.rand(48, 64, generator=g) < 0.01)
    return low + spikes + 0.1 * torch.randn(48, 64, generator=g)


def test_a_menu_says_what_packing_leaves_and_takes() -> None:
    whole = change()
    options = {"core_bits": 16, "value_bits": 16}
    for choice in menu(whole, None, options)[::5]:
        packed = CODEC.compress(torch.zeros(48, 64), whole, None, {**options, **choice.options})
        stored = CODEC.effective(torch.zeros(48, 64), packed).weight
        error = float((stored - whole).square().sum())
        assert error == pytest.approx(choice.error, rel=0.02, abs=1e-3 * float(whole.norm() ** 2))
        assert packed.nbytes == pytest.approx(choice.nbytes, rel=0.1, abs=40)


def test_fixed_options_are_kept_and_importance_counts() -> None:
    found = menu(change(), None, {"rank": 4, "density": 0.02})
    assert [(c.rank, c.density) for c in found] == [(4, 0.02)]
    weight = torch.full((64,), 4.0)
    heavy = menu(change(), weight, {"rank": 4, "density": 0.02})
    assert heavy[0].error == pytest.approx(4 * found[0].error, rel=1e-4)


def choices(*pairs: tuple[float, float]) -> list[Choice]:
    return [Choice(rank, 0.0, nbytes, error) for rank, (nbytes, error) in enumerate(pairs)]


def test_steps_are_taken_by_error_saved_per_byte() -> None:
    menus = {
        "steep": choices((0, 100), (10, 20), (20, 10)),
        "flat": choices((0, 100), (10, 92), (20, 88)),
    }
    assert {n: c.nbytes for n, c in allocate(menus, 10).items()} == {"steep": 10, "flat": 0}
    assert {n: c.nbytes for n, c in allocate(menus, 30).items()} == {"steep": 20, "flat": 10}
    assert {n: c.nbytes for n, c in allocate(menus, 99).items()} == {"steep": 20, "flat": 20}


def test_settings_above_the_hull_are_never_taken() -> None:
    menus = {"one": choices((0, 100), (10, 99), (20, 0), (30, 5))}
    for room in (0, 10, 20, 40):
        assert allocate(menus, room)["one"].nbytes == (20 if room >= 20 else 0)
