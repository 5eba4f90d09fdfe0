"""How much memory the KV cache and the host tier get, and how long a request may be.

Owns: the defaults of --kv-memory, --host-variant-memory and --max-model-len. Does not know requests
or tensors.
"""

import os
from dataclasses import dataclass

import torch

from tsugiki.config import ServeConfig
from tsugiki.errors import ConfigError
from tsugiki.model.kv_cache import bytes_per_block
from tsugiki.model.loader import BaseModel

DEFAULT_MODEL_LEN = 8192
DEFAULT_KV_BYTES = 2 * 2**30
DEFAULT_HOST_BYTES = 4 * 2**30
KV_SHARE = 0.25  # of the machine's memory, when that is less


@dataclass(frozen=True, slots=True)
class Sizes:
    """What depends on the base and the machine."""

    num_blocks: int
    block_size: int
    max_model_len: int
    host_variant_bytes: int


def choose_sizes(config: ServeConfig, base: BaseModel) -> Sizes:
    """Blocks of the KV cache, and the longest request.

    Raises:
        ConfigError: a --max-model-len over what the model or the cache can hold, no room for one
            block.
    """
    per_block = bytes_per_block(base.architecture, config.block_size, base.dtype)
    kv_bytes = config.kv_memory or default_kv_bytes(base.device)
    longest = base.architecture.max_position_embeddings
    blocks = kv_bytes // per_block
    fits = blocks * config.block_size
    if not blocks:
        raise ConfigError(f"--kv-memory {kv_bytes} is less than one block of {per_block} bytes")
    wanted = config.max_model_len or min(longest, fits, DEFAULT_MODEL_LEN)
    if wanted > longest:
        raise ConfigError(f"--max-model-len {wanted} is over the model's own {longest}")
    if wanted > fits:
        needed = -(-wanted // config.block_size) * per_block
        raise ConfigError(
            f"--max-model-len {wanted} does not fit into --kv-memory {kv_bytes}, which holds "
            f"{fits} tokens; it needs {needed} bytes"
        )
    most_useful = config.max_num_seqs * -(-wanted // config.block_size)
    host_bytes = config.host_variant_memory
    if host_bytes is None:
        host_bytes = default_host_bytes(base.device)
    return Sizes(min(blocks, most_useful), config.block_size, wanted, host_bytes)


def default_kv_bytes(device: torch.device) -> int:
    """A share of the memory, at most 2 GiB on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(KV_SHARE * free)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(DEFAULT_KV_BYTES, int(KV_SHARE * memory))


def default_host_bytes(device: torch.device) -> int:
    """None on a CPU: packed content is not smaller than what is staged from it, so the same memory
    is worth more as --variant-memory."""
    return DEFAULT_HOST_BYTES if device.type == "cuda" else 0
