"""Dropout masks that cost no bytes: kept columns regenerated from a seed.

Owns: the random generator, the definition of a mask (frozen in docs/format.md), a cache of masks.
Does not know: values, codes, files.

Random words: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
Selection: group-wise dropout with exact counts (DeltaDQ, arXiv 2410.08666, section "Group-wise
Dropout"); one mask for a tile of `rows_per_mask` rows, where 1 is the paper.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.operands import ColumnDraw

Words = NDArray[np.uint32]

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)
MAX_COLUMNS = 65536  # columns are stored as uint16
TILES_AT_ONCE = 2**20  # words in flight: bounds the memory of the generator


def philox(counter: tuple[Words, Words, Words, Words], key: int) -> list[Words]:
    """Philox-4x32-10 of broadcastable counter words under a 64-bit key: four word arrays."""
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (product1 >> SHIFT) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & LOW, product0 & LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return [word.astype(np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3)]


def tensor_id(name: str) -> int:
    """The first 8 bytes of sha256(name), little-endian: what tells tensors of one seed apart."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def words(mask: "Mask", tiles: NDArray[np.int64]) -> Words:
    """uint32 [len(tiles), in]: word c of a tile is word c % 4 of the block (c // 4, tile, id)."""
    blocks = np.arange((mask.columns + 3) // 4, dtype=np.uint32)[None, :]
    identity = tensor_id(mask.name)
    low, high = (np.array([[w]], np.uint32) for w in (identity & 0xFFFFFFFF, identity >> 32))
    stream = philox((blocks, tiles.astype(np.uint32)[:, None], low, high), mask.seed)
    return np.stack(stream, axis=2).reshape(len(tiles), -1)[:, : mask.columns]


def kept_of(size: int, alpha: int) -> int:
    """Columns kept in a group of `size`: size / alpha rounded half up, at least one."""
    return max(1, (2 * size + alpha) // (2 * alpha))


@dataclass(frozen=True, slots=True)
class Mask:
    """What a mask depends on, and nothing else: equal values mean equal masks."""

    seed: int  # 0 .. 2^64 - 1
    name: str  # canonical name of the module
    rows: int  # out features
    columns: int  # in features, <= 65536
    alpha: int  # keep about 1 / alpha
    group_size: int
    rows_per_mask: int

    @property
    def tiles(self) -> int:
        """How many tiles of rows, the last one perhaps ragged."""
        return -(-self.rows // self.rows_per_mask)

    def kept_in(self, size: int) -> int:
        """See `kept_of`."""
        return kept_of(size, self.alpha)

    def groups(self) -> list[tuple[int, int, int]]:
        """(size, kept, how many) of the full groups and of the short last group, where present."""
        full, rest = divmod(self.columns, self.group_size)
        found = [(self.group_size, full), (rest, 1)]
        return [(size, self.kept_in(size), count) for size, count in found if size and count]

    @property
    def kept(self) -> int:
        """Columns kept in a tile."""
        return sum(kept * count for _, kept, count in self.groups())

    def rescale(self) -> Tensor:
        """float32 [kept]: group size / kept of the group of each kept column, in order."""
        factors = [
            torch.full((kept * count,), size / kept, dtype=torch.float32)
            for size, kept, count in self.groups()
        ]
        return torch.cat(factors)


def kept_columns(mask: Mask, tiles: NDArray[np.int64] | None = None) -> NDArray[np.uint16]:
    """uint16 [tiles, kept], ascending in each tile; of all tiles, or of the given ones.

    In each group the columns with the smallest words are kept, the lower column where words tie.
    """
    chosen = np.arange(mask.tiles, dtype=np.int64) if tiles is None else tiles
    out = np.empty((len(chosen), mask.kept), np.uint16)
    step = max(1, TILES_AT_ONCE // mask.columns)
    for start in range(0, len(chosen), step):
        out[start : start + step] = _select(mask, words(mask, chosen[start : start + step]))
    return out


def _select(mask: Mask, drawn: Words) -> NDArray[np.uint16]:
    tiles = drawn.shape[0]
    selected = []
    begin = 0
    for size, kept, count in mask.groups():
        span = drawn[:, begin : begin + size * count].reshape(tiles, count, size)
        keys = span.astype(np.uint64) << np.uint64(16) | np.arange(size, dtype=np.uint64)
        smallest = _smallest(keys, kept)
        local = np.sort((smallest & np.uint64(0xFFFF)).astype(np.uint16), axis=2)
        first = (begin + np.arange(count) * size).astype(np.uint16)[None, :, None]
        selected.append((local + first).reshape(tiles, count * kept))
        begin += size * count
    return np.concatenate(selected, axis=1)


def _smallest(keys: NDArray[np.uint64], kept: int) -> NDArray[np.uint64]:
    """The `kept` smallest along the last axis, in any order; keys are distinct."""
    if kept == 1:
        least: NDArray[np.uint64] = keys.min(axis=2, keepdims=True)
        return least
    if kept == keys.shape[2]:
        return keys
    return np.partition(keys, kept - 1, axis=2)[:, :, :kept]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SharedMask:
    """A mask in memory. Whoever holds this object keeps it there; compared by identity."""

    columns: Tensor  # uint16 [tiles, kept]
    nbytes: int


Draw = Callable[[Mask], Tensor]  # uint16 [tiles, kept]


def drawn(mask: Mask) -> Tensor:
    """The kept columns of all tiles, drawn here."""
    return torch.from_numpy(kept_columns(mask))


def drawn_by(kernels: KernelBackend, device: torch.device | str = "cpu") -> Draw:
    """Kept columns on a device, drawn by a backend that can, equal to the bit; else here."""

    def draw(mask: Mask) -> Tensor:
        wanted = ColumnDraw(
            seed=mask.seed,
            identity=tensor_id(mask.name),
            tiles=mask.tiles,
            columns=mask.columns,
            group_size=mask.group_size,
            kept=mask.kept_in(mask.group_size),
            kept_of_rest=mask.kept_in(mask.columns % mask.group_size),
        )
        found = kernels.draw_columns(wanted)
        return (drawn(mask) if found is None else found).to(device)

    return draw


class Masks(Protocol):
    """Where the kept columns of a mask come from."""

    def columns(self, mask: Mask) -> Tensor:
        """uint16 [tiles, kept], the same tensor for equal masks while anybody holds it."""


class MaskCache:
    """The masks that somebody holds, each once: variants of one seed and layout share theirs.

    Thread-safe. It holds no mask itself: one that no variant holds any more is gone. Two threads
    that want the same new mask at once may both draw it, and get the one that was stored first.
    """

    def __init__(self, draw: Draw = drawn) -> None:
        self._draw = draw
        self._held: WeakValueDictionary[Mask, SharedMask] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, mask: Mask) -> SharedMask:
        """The mask, drawn unless somebody holds it; hold what is returned."""
        with self._lock:
            found = self._held.get(mask)
        if found is not None:
            return found
        columns = self._draw(mask)
        new = SharedMask(columns, columns.nbytes)
        with self._lock:
            return self._held.setdefault(mask, new)

    def columns(self, mask: Mask) -> Tensor:
        """See `Masks.columns`."""
        return self.get(mask).columns

    def __len__(self) -> int:
        """How many masks are held."""
        return len(self._held)


class MaskLease:
    """The masks that one variant uses: drawn through a cache, held as long as `held` is."""

    def __init__(self, cache: MaskCache) -> None:
        self._cache = cache
        self._held: dict[SharedMask, None] = {}

    @property
    def held(self) -> tuple[SharedMask, ...]:
        """Every mask asked for so far, each once."""
        return tuple(self._held)

    def columns(self, mask: Mask) -> Tensor:
        """See `Masks.columns`."""
        shared = self._cache.get(mask)
        self._held[shared] = None
        return shared.columns
