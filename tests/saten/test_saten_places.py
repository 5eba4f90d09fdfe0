"""Places of the sparse part in few bits: there and back, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki.codecs.saten_sparse import (
    decode_gaps,
    decode_pairs,
    encode_gaps,
    encode_pairs,
    largest,
    most_high_bytes,
    two_of_four,
)
from tsugiki.errors import InvalidArtifact


@given(places=st.sets(st.integers(0, 4999), max_size=200))
@settings(max_examples=60)
def test_places_come_back_as_they_were(places: set[int]) -> None:
    ordered = torch.tensor(sorted(places), dtype=torch.int64)
    stored = encode_gaps(ordered)
    assert torch.equal(decode_gaps(stored, len(ordered), 5000), ordered)
    assert len(stored.high) <= most_high_bytes(len(ordered), 5000, stored.low_bits)


@pytest.mark.parametrize(("density", "excess"), [(0.5, 1.02), (0.05, 1.02), (0.005, 1.02)])
def test_a_place_costs_what_its_entropy_is_and_little_more(density: float, excess: float) -> None:
    entries = 400_000
    generator = torch.Generator().manual_seed(1)
    places = (torch.rand(entries, generator=generator) < density).nonzero()[:, 0]
    stored = encode_gaps(places)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert 8 * (len(stored.low) + len(stored.high)) < excess * entropy * entries


def test_the_largest_are_kept_and_importance_counts() -> None:
    residual = torch.tensor([[1.0, -5.0, 0.1], [3.0, 0.2, -2.0]])
    assert largest(residual, 2).tolist() == [1, 3]
    assert largest(residual, 2, torch.tensor([1.0, 0.01, 4.0])).tolist() == [3, 5]


def test_two_of_every_four_are_kept() -> None:
    residual = torch.randn(6, 16, generator=torch.Generator().manual_seed(2))
    places = two_of_four(residual)
    kept = torch.zeros(96, dtype=torch.bool)
    kept[places] = True
    assert bool((kept.view(-1, 4).sum(1) == 2).all())
    groups, of = residual.abs().view(-1, 4), kept.view(-1, 4)
    assert bool((groups.where(of, torch.inf).amin(1) >= groups.where(~of, 0.0).amax(1)).all())
    stored = encode_pairs(places)
    assert len(stored) == 12
    assert torch.equal(decode_pairs(stored, 24), places)


def test_places_that_cannot_be_are_refused() -> None:
    places = torch.tensor([3, 70, 71, 399])
    stored = encode_gaps(places)
    with pytest.raises(InvalidArtifact, match="place 399 is not within 399"):
        decode_gaps(stored, 4, 399)
    with pytest.raises(InvalidArtifact, match="holds 4 places"):
        decode_gaps(stored, 5, 400)
    longer = replace(stored, high=torch.cat([stored.high, torch.zeros(1, dtype=torch.uint8)]))
    with pytest.raises(InvalidArtifact, match="no byte behind"):
        decode_gaps(longer, 4, 400)
    with pytest.raises(InvalidArtifact, match="do not ascend"):
        decode_pairs(torch.tensor([0b0101], dtype=torch.uint8), 1)
