"""Weights that are looked up: an index for every entry, a small codebook for a stretch of a row.

Owns: the resident form of a sketched linear (SketchTune, arXiv 2410.06364) and the formula of its
weight. Knows nothing of files, of how indices were found, of backends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

INDEX_BITS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Which entry of its codebook each weight takes; a base and all its variants share one.

    A row's columns fall into `groups` stretches of equal width, each with a codebook of its own.
    """

    shape: tuple[int, int]  # (out, in), in a multiple of groups
    bits: int  # 2, 3 or 4
    groups: int  # codebooks of a row
    # uint8 [out, ceil(in * bits / 8)]; column c at bit c * bits, least significant first
    codes: Tensor

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """(out, groups, entries) of whatever has one value for each entry of each codebook."""
        return (self.shape[0], self.groups, 1 << self.bits)

    def indices(self) -> Tensor:
        """int64 [out, groups, in / groups]."""
        rows, columns = self.shape
        bit = torch.arange(columns, device=self.codes.device) * self.bits
        padded = torch.nn.functional.pad(self.codes, (0, 1)).long()  # a code may straddle two bytes
        word = padded[:, bit // 8] | padded[:, bit // 8 + 1] << 8
        return ((word >> bit % 8) & ((1 << self.bits) - 1)).view(rows, self.groups, -1)

    def rows(self, start: int, stop: int) -> "IndexMap":
        """The map of some rows: a view."""
        return IndexMap(
            (stop - start, self.shape[1]), self.bits, self.groups, self.codes[start:stop]
        )


@dataclass(frozen=True, slots=True)
class CodebookWeight:
    """W[r, c] = codebooks[r, c // (in / groups), index(r, c)]."""

    index: IndexMap
    codebooks: Tensor  # float16 [out, groups, entries]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.index.shape


def looked_up(index: IndexMap, values: Tensor) -> Tensor:
    """float32 [out, in] of `values` [out, groups, entries] at each weight's place."""
    return values.float().gather(2, index.indices()).flatten(1)
