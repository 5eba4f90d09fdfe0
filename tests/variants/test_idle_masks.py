"""Masks that no variant holds: kept by a tier for the next one of their seed, as far as it may."""

import torch
from torch import Tensor

from tests.variants.stepped_source import resident
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import Mask, MaskCache, drawn
from tsugiki.variants.tier import Tier

MASK = Mask(seed=1, name="m", rows=32, columns=64, alpha=4, group_size=16, rows_per_mask=16)
NBYTES = 2 * 2 * 16


class Drawing:
    """A cache that tells how often it had to draw, and a tier."""

    def __init__(self, idle_bytes: int) -> None:
        self.draws = 0
        self.cache = MaskCache(self.draw)
        self.tier = Tier[ResidentVariant]("device", 1000, idle_bytes=idle_bytes)

    def draw(self, mask: Mask) -> Tensor:
        self.draws += 1
        return drawn(mask)

    def put(self, digest: str) -> None:
        shared = self.cache.get(MASK)
        self.tier.put(digest, resident(digest, 10, (shared,)))


def test_the_next_variant_of_a_seed_finds_the_mask_that_the_last_one_left() -> None:
    drawing = Drawing(idle_bytes=NBYTES)
    drawing.put("a")
    assert drawing.tier.drop("a") == 10
    assert drawing.tier.bytes == NBYTES
    drawing.put("b")
    assert drawing.draws == 1
    assert drawing.tier.bytes == NBYTES + 10
    assert torch.equal(drawing.cache.columns(MASK), drawn(MASK))


def test_without_bytes_for_it_a_mask_goes_with_its_last_variant() -> None:
    drawing = Drawing(idle_bytes=NBYTES - 1)
    drawing.put("a")
    assert drawing.tier.drop("a") == 10 + NBYTES
    assert len(drawing.cache) == 0
    drawing.put("b")
    assert drawing.draws == 2
