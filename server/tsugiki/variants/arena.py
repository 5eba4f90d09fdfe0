"""The memory of variants: each has one extent of its own, and freeing it gives it back.

Owns: the extents and their accounting. Does not know what is in them.

On a CPU an extent is an anonymous private mapping: page-aligned, zeroed, unmapped when its last
tensor is gone, so that bytes reported free are the operating system's again at once and nothing
fragments, in whatever order variants come and go. The page table is the slot table. A heap gives
neither: after some churn it holds freed variants between living ones.
On a GPU variants lie in one buffer, whose extents move together (tsugiki_kernels/cuda/arena.py); an
arena here then holds packed content alone.
"""

import mmap
import weakref

import torch
from torch import Tensor


class Arena:
    """Allocates extents; any thread. `allocate` is what `artifact.read_from` and `stage_variant`
    take."""

    def __init__(self) -> None:
        self._extents: dict[int, int] = {}  # id of a living mapping -> its bytes

    def allocate(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], zeros, in an extent of its own that lives as long as any view of it.

        Raises:
            MemoryError: the operating system has no more.
        """
        size = page_rounded(nbytes)
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no {size} bytes for a variant: {error.strerror}") from error
        self._extents[id(mapping)] = size
        # It runs before the mapping's id can be another's, in whatever thread drops the last view.
        weakref.finalize(mapping, self._extents.pop, id(mapping)).atexit = False
        return torch.frombuffer(mapping, dtype=torch.uint8)[:nbytes]

    @property
    def nbytes(self) -> int:
        """Bytes mapped now."""
        return sum(list(self._extents.values()))

    def __len__(self) -> int:
        """Extents mapped now."""
        return len(self._extents)


def page_rounded(nbytes: int) -> int:
    """The bytes of an extent for so many."""
    return max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE
