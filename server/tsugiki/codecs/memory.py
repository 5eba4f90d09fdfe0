"""Where the bytes of variants go: whoever reads or stages one is told by whom to allocate."""

from collections.abc import Callable

import torch
from torch import Tensor

Allocate = Callable[[int], Tensor]  # bytes -> uint8 [bytes], aligned to 64 bytes, not initialised


def host_memory(nbytes: int) -> Tensor:
    """From the heap, for whoever does not keep it for long."""
    return torch.empty(nbytes, dtype=torch.uint8)
