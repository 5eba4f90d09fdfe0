"""Random weights on the lattice."""

import torch
from torch import Tensor

from tsugiki_kernels.lattice import RESIDUAL_DTYPE, LatticeWeight


def lattice(bits: int, columns: int, rows: int = 37) -> LatticeWeight:
    """Every code is as likely as the others."""
    generator = torch.Generator().manual_seed(bits + columns)
    size = (rows, columns // 8)

    def codes(dtype: torch.dtype) -> Tensor:
        limits = torch.iinfo(dtype)
        return torch.randint(limits.min, limits.max, size, generator=generator).to(dtype)

    residual = None if bits == 2 else codes(RESIDUAL_DTYPE[bits])
    scales = (0.5 + torch.rand(rows, generator=generator)).bfloat16()
    return LatticeWeight((rows, columns), bits, codes(torch.int16), residual, scales)
