"""Dense weights as a backend reads them, and back."""

import torch
from torch import Tensor

from tsugiki_kernels.interface import KernelBackend


def packed_for(kernels: KernelBackend, weight: Tensor) -> Tensor:
    """A packed copy."""
    copy = weight.clone()
    kernels.pack(copy)
    return copy


def unpacked(kernels: KernelBackend, weight: Tensor) -> Tensor:
    """What was packed: all its rows."""
    out = torch.empty_like(weight)
    kernels.lookup(weight, torch.arange(len(weight)), out)
    return out
