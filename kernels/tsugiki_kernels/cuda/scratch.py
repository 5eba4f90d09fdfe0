"""Memory for the length of one operation.

Owns: one buffer for each dtype, which only grows. Operations follow each other, so all share it. It
is taken when an operation is asked for, so no graph that is captured later allocates: a recorded
operation keeps the buffer that it was given.
"""

import torch
from torch import Tensor


class Scratch:
    """Buffers of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[torch.dtype, Tensor] = {}

    def take(self, dtype: torch.dtype, count: int) -> Tensor:
        """[count], not initialised; the next operation has the same."""
        room = self._buffers.get(dtype)
        if room is None or len(room) < count:
            room = torch.empty(count, dtype=dtype, device=self._device)
            self._buffers[dtype] = room
        return room[:count]
