"""The cells of a sketched weight: which entries of a row share a float of its codebook.

Owns: the order of a stored codebook, finding the index map again in the dense weight, sums over
cells. Does not know: files, how codebooks come about.

Canonical codebooks. Those of a base ascend strictly, and codes that no column of a stretch takes
come last. So the dense weight says which code an entry has: the rank of its value among the values
of its stretch. Whoever has the weight (a converter, an oracle) needs no map beside it.
"""

import torch
from torch import Tensor

from tsugiki.codecs import packing
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.codebooks import IndexMap

LARGEST = 65504.0  # of float16


def cells_of(weight: Tensor, bits: int, groups: int, name: str = "") -> IndexMap:
    """The map of a dense sketched weight (float32 [out, in], exactly as stored).

    Raises:
        CompressionRefused: some stretch of a row has more values than a codebook.
    """
    rows, columns = weight.shape
    if columns % groups:
        raise CompressionRefused(f"{name} has {columns} columns, no multiple of {groups} groups")
    ordered, places = weight.float().view(rows, groups, -1).sort(dim=2)
    ranks = torch.zeros_like(places)
    ranks[:, :, 1:] = (ordered.diff(dim=2) != 0).cumsum(2)
    if int(ranks.max()) >= 1 << bits:
        raise CompressionRefused(
            f"{name} is not sketched at {bits} bits and {groups} groups: some stretch of a row has "
            f"{int(ranks.max()) + 1} values; make a base with `tsugiki compress-base sketch` first"
        )
    codes = torch.empty_like(ranks).scatter_(2, places, ranks)
    packed = packing.pack(codes.view(rows, columns).to(torch.uint8), bits)
    return IndexMap((rows, columns), bits, groups, packed)


def canonical(codes: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codebooks as a base stores them, and the codes renumbered to fit.

    codes: int64 [out, groups, width]; codebooks: float32 [out, groups, entries], any order. Equal
    float16 values become one entry. Returns codes and float16 codebooks.

    Raises:
        CompressionRefused: a value beyond float16.
    """
    values = codebooks.gather(2, codes).half()
    if not bool(torch.isfinite(values).all()):
        raise CompressionRefused("a weight does not fit float16; scale the checkpoint first")
    ordered, places = values.sort(dim=2)
    ranks = torch.zeros_like(places)
    ranks[:, :, 1:] = (ordered.float().diff(dim=2) != 0).cumsum(2)
    renumbered = torch.empty_like(ranks).scatter_(2, places, ranks)
    stored = torch.full(codebooks.shape, float("nan")).scatter_(2, ranks, ordered.float())
    return renumbered, _filled(stored)


def _filled(codebooks: Tensor) -> Tensor:
    """Entries that no column takes (NaN, all of them last) continue the ascent."""
    stored = codebooks.half()
    for entry in range(1, stored.shape[2]):
        unused = stored[..., entry].isnan()
        above = torch.nextafter(stored[..., entry - 1], torch.tensor(torch.inf).half())
        stored[..., entry] = torch.where(unused, above.clamp(max=LARGEST), stored[..., entry])
    return stored


def cell_sums(index: IndexMap, values: Tensor) -> Tensor:
    """Sums of `values` [out, in] over the cells, [out, groups, entries], in their dtype."""
    rows, groups, _ = index.codebook_shape
    sums = values.new_zeros(index.codebook_shape)
    return sums.scatter_add_(2, index.indices(), values.view(rows, groups, -1))
