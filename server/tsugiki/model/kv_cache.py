"""The paged KV cache: one tensor per layer, blocks handed out by the engine.

Owns: its shape and size in bytes. Does not know: which request holds which block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.model.architecture import Architecture
from tsugiki.model.slab import Slab, room


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers, written in place. A block id means the same in every layer."""

    layers: tuple[Tensor, ...]  # each [2, blocks, kv_heads, block_size, head_dim], activation dtype

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.layers[0].shape[1]

    @property
    def block_size(self) -> int:
        """Tokens a block holds."""
        return self.layers[0].shape[3]


def allocate_kv_cache(
    architecture: Architecture,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> KVCache:
    """A zeroed cache of `num_blocks` blocks (zeros, so that masked places never hold NaN)."""
    a = architecture
    shape = (2, num_blocks, a.num_kv_heads, block_size, a.head_dim)
    slab = Slab(a.num_layers * room(shape, dtype), device)
    return KVCache(tuple(slab.take(shape, dtype) for _ in range(a.num_layers)))


def bytes_per_block(architecture: Architecture, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers."""
    a = architecture
    return 2 * a.num_layers * a.num_kv_heads * block_size * a.head_dim * dtype.itemsize
