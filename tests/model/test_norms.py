"""Every row gets the norms of its own variant, whoever was there before."""

import gc
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.model.staged import variant
from tsugiki.codecs.base import ResidentVariant
from tsugiki.model.norms import FEWEST_PLACES, NormWeights
from tsugiki.model.workspace import Workspace

STORED = {"n": torch.tensor([1.0, 1.0]), "m": torch.tensor([5.0, 6.0]), "k": torch.ones(3)}


def norms_of(plus_one: bool = False) -> tuple[NormWeights, Workspace]:
    space = Workspace(torch.device("cpu"))
    return NormWeights(STORED, plus_one, space), space


def own(first: float) -> ResidentVariant:
    return variant("dense", vectors={"n": torch.tensor([first, first + 1])})


def values(norms: NormWeights, name: str, place: int) -> list[float]:
    weight: Tensor = norms.of(name, base_alone=False)
    return list(weight[place].tolist())


def placed(norms: NormWeights, variants: Sequence[ResidentVariant]) -> Mapping[int, int]:
    places = norms.places(variants)
    assert places is not None
    return places


def test_a_variant_has_its_own_norms_and_the_base_s_where_it_changes_none() -> None:
    for plus in (0, 1):
        norms, _ = norms_of(bool(plus))
        one, other = own(3), variant("dense")
        places = placed(norms, [one, other])
        assert values(norms, "n", places[id(one)]) == [3 + plus, 4 + plus]
        assert values(norms, "m", places[id(one)]) == [5 + plus, 6 + plus]
        assert values(norms, "n", places[id(other)]) == [1 + plus, 1 + plus]
        assert norms.of("n", base_alone=True).tolist() == [[1 + plus, 1 + plus]]
        assert norms.of("k", base_alone=True).shape == (1, 3)


def test_with_the_norms_of_the_base_no_row_needs_a_place() -> None:
    norms, _ = norms_of()
    assert norms.places([]) is None
    assert norms.places([variant("dense"), variant()]) is None


def test_places_pass_to_others_only_when_no_row_of_the_step_needs_them() -> None:
    norms, space = norms_of()
    growths = space.growths
    many = [own(float(i)) for i in range(10, 10 + FEWEST_PLACES - 1)]
    placed(norms, many)
    kept, newcomer = many[0], own(100.0)
    places = placed(norms, [kept, newcomer])
    assert values(norms, "n", places[id(kept)]) == [10, 11]
    assert values(norms, "n", places[id(newcomer)]) == [100, 101]
    again = placed(norms, many[1:])
    assert [values(norms, "n", again[id(v)])[0] for v in many[1:]] == list(range(11, 25))
    assert space.growths == growths


def test_more_variants_than_places_make_room_and_say_so_by_a_growth() -> None:
    norms, space = norms_of()
    growths = space.growths
    many = [own(float(i)) for i in range(FEWEST_PLACES + 5)]
    places = placed(norms, many)
    assert space.growths > growths
    assert [values(norms, "n", places[id(v)])[0] for v in many] == list(range(FEWEST_PLACES + 5))
    assert values(norms, "n", 0) == [1, 1]


def test_forgotten_variants_are_not_kept_alive() -> None:
    norms, _ = norms_of()
    gone = torch.tensor([3.0, 4.0])
    alive = weakref.ref(gone)
    placed(norms, [variant("dense", vectors={"n": gone})])
    norms.forget()
    del gone
    gc.collect()
    assert alive() is None
