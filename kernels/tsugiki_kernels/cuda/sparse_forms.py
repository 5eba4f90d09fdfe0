"""Sparse deltas as the GPU's kernels read them: the packing of tiles and of rows.

Owns: the mirror of src/sparse_codes.cuh and src/sparse_rows.cuh. Knows nothing of launches.

Tiles (`rows_per_mask` a multiple of 16): the codes of 16 rows in the order in which tensor cores
consume them; kept columns stay as they are, so that variants of one seed share them.

Rows (all else): lane l of a warp owns the l-th of 32 neighbouring blocks of columns (a window) and
has its own list of entries, `entries` long in every row: the place of a column within the block, 8
bits each, and its code. Lists shorter than that are filled up with a place that holds zeros.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki_kernels.deltas import SparseDelta

GROUP = 16  # rows of a tile that are computed together
PANEL = 32  # kept columns
LANES = 32
QUAD = 4  # rows of the row form that are computed together; entries of a lane and row likewise
BLOCKS = (128, 64, 32, 16, 8)  # columns of a lane in a window


def in_tiles(delta: SparseDelta) -> bool:
    """Whether tensor cores can take this delta."""
    return delta.rows_per_mask % GROUP == 0


def unpacked(delta: SparseDelta) -> Tensor:
    """uint8 [tiles, kept, rows_per_mask]."""
    tiles, kept = delta.columns.shape
    shifts = torch.arange(0, 8, delta.bits, dtype=torch.uint8, device=delta.codes.device)
    values = (delta.codes.unsqueeze(-1) >> shifts) & ((1 << delta.bits) - 1)
    count = kept * delta.rows_per_mask
    return values.flatten(1)[:, :count].view(tiles, kept, delta.rows_per_mask)


def pack_tiles(delta: SparseDelta) -> Tensor:
    """int32 [groups of 16 rows, words * 32]: codes as src/sparse_codes.cuh reads them."""
    tiles, kept = delta.columns.shape
    codes = unpacked(delta).view(tiles, kept, -1, GROUP).permute(0, 2, 1, 3).reshape(-1, kept, 16)
    groups = -(-delta.shape[0] // GROUP)
    panels = -(-kept // PANEL)
    padded = panels + panels % 2 if delta.bits == 1 else panels
    codes = torch.nn.functional.pad(codes[:groups], (0, 0, 0, padded * PANEL - kept))
    # panel, half of it, k // 8, (k % 8) // 2, k % 2; row // 8, row % 8
    axes = codes.view(groups, padded, 2, 2, 4, 2, 2, 8).permute(0, 1, 7, 4, 2, 3, 6, 5)
    pairs = axes.reshape(groups, padded, LANES, 2, 4, 2).to(torch.int64)
    return _in_fours(_words(pairs, delta.bits))


def _words(pairs: Tensor, bits: int) -> Tensor:
    """[groups, panels, lanes, half, pair, low or high] -> int64 [groups, words, lanes]."""
    groups, panels = pairs.shape[:2]
    low, high = pairs[..., 0], pairs[..., 1]
    if bits == 1:  # two panels to a word, the first pair in the highest bits
        both = _joined(low, high).view(groups, panels // 2, 2, LANES, 8).transpose(2, 3)
        return _at(both.reshape(groups, -1, LANES, 16).flip(-1), 1)
    if bits == 2:
        return _at(_joined(low, high), 2)
    planes = [(low & 15, high & 15), (low >> 4, high >> 4)][: bits // 4]
    words = [_at((a | b << 16), 4) for a, b in planes]  # each [groups, panels, lanes, half]
    return torch.stack(words, -1).permute(0, 1, 3, 4, 2).reshape(groups, -1, LANES)


def _joined(low: Tensor, high: Tensor) -> Tensor:
    """Pairs as words with the codes at bits 0 and 16, [..., 8 slots]."""
    return (low | high << 16).flatten(-2)


def _at(slots: Tensor, bits: int) -> Tensor:
    """Sums the last axis, slot s shifted by s * bits."""
    shifts = torch.arange(slots.shape[-1], device=slots.device) * bits
    return (slots << shifts).sum(-1)


def _in_fours(words: Tensor) -> Tensor:
    """int64 [groups, words, lanes] -> int32 [groups, words * lanes]: fours of words a lane."""
    groups, count, _ = words.shape
    whole = count // 4 * 4
    fours = words[:, :whole].view(groups, -1, 4, LANES).transpose(2, 3).reshape(groups, -1)
    joined = torch.cat([fours, words[:, whole:].reshape(groups, -1)], 1)
    return joined.to(torch.int32)


class RowLayout(NamedTuple):
    """How the entries of rows are shared out among lanes."""

    block: int  # neighbouring columns of a lane in a window
    windows: int
    entries: int  # of a lane in each row and window


def row_layout(delta: SparseDelta) -> RowLayout:
    """The layout that wastes the least; of equals the one of fewest windows."""
    inputs = delta.shape[1]
    columns = delta.columns.cpu().to(torch.int32)
    layouts = [RowLayout(b, _windows(inputs, b), _entries(columns, b)) for b in BLOCKS]
    return min(layouts, key=lambda layout: layout.windows * layout.entries)


def pack_rows(delta: SparseDelta) -> tuple[Tensor, Tensor]:
    """(places, codes) of every row.

    places: uint8 [rows / 4, windows, entries / 4, 32 lanes, 4 rows, 4]; a place is the number of a
    column within the lane's block, or `block` where there is none.
    codes: uint8 [rows / 4, windows, entries / 4, 32, 2 * bits]; the 16 codes of a lane, packed.
    """
    rows, _ = delta.shape
    columns = delta.columns.cpu().to(torch.int32)
    block, windows, entries = row_layout(delta)
    tile = torch.arange(rows, device=columns.device) // delta.rows_per_mask
    where = _entry_index(columns, block, windows, entries)[tile]  # [rows, kept]
    quads, per_row = -(-rows // QUAD), windows * LANES * entries
    places = torch.full((quads * QUAD, per_row), block, dtype=torch.uint8, device=columns.device)
    codes = torch.zeros_like(places)
    places[:rows].scatter_(1, where, (columns % block).to(torch.uint8)[tile])
    codes[:rows].scatter_(1, where, unpacked(delta).transpose(1, 2).flatten(0, 1)[:rows])
    shape = (quads, QUAD, windows, entries // 4, LANES, 4)
    by_lane = [t.view(shape).permute(0, 2, 3, 4, 1, 5).contiguous() for t in (places, codes)]
    return by_lane[0], _packed_bytes(by_lane[1].flatten(-2), delta.bits)


def _windows(inputs: int, block: int) -> int:
    return max(1, -(-inputs // (block * LANES)))


def _entries(columns: Tensor, block: int) -> int:
    """Entries of a lane in one window of one row: the most that any has, a multiple of 4."""
    most = int(_ranks(columns // block).max()) + 1 if columns.numel() else 1
    return most + -most % 4


def _ranks(owners: Tensor) -> Tensor:
    """int64: how many of the same owner come before, along ascending rows."""
    position = torch.arange(owners.shape[1], device=owners.device).expand(owners.shape)
    changes = torch.ones_like(owners, dtype=torch.bool)
    changes[:, 1:] = owners[:, 1:] != owners[:, :-1]
    starts = torch.where(changes, position, 0).cummax(1).values
    return position - starts


def _entry_index(columns: Tensor, block: int, windows: int, entries: int) -> Tensor:
    """int64 [tiles, kept]: where each entry goes in [windows, entries / 4, lanes, 4]."""
    owner = (columns // block).long()
    rank = _ranks(owner)
    step = owner // LANES * (entries // 4) + rank // 4
    return (step * LANES + owner % LANES) * 4 + rank % 4


def _packed_bytes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., 16] -> uint8 [..., 2 * bits]: fields of `bits`, least significant first."""
    fields = codes.view(*codes.shape[:-1], 2 * bits, 8 // bits)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (fields << shifts).sum(-1).to(torch.uint8)
