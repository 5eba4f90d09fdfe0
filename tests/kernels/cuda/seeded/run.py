"""Runs a seeded kernel under a sanitizer, which says on stderr what it finds and ends the process.

It must have been loaded before Python: test_harness.py starts this file with LD_PRELOAD.

    python run.py CACHE FLAVOUR KERNEL
"""

import sys
from pathlib import Path

import torch

from tests.kernels.cuda.executor import Executor, KernelFault
from tests.kernels.cuda.host_build import FLAVOURS

BLOCKS = {"seeded_blocks_write_one_element": 2}


def main(cache: str, flavour: str, kernel: str) -> None:
    """Launch a kernel on 128 numbers, whose tensors end where the memory does."""
    x, y = torch.arange(128, dtype=torch.float32), torch.zeros(128)
    executor = Executor(Path(cache), FLAVOURS[flavour], sources=Path(__file__).parent)
    try:
        executor.launch(kernel, (BLOCKS.get(kernel, 1),), (128,), [x, y])
    except KernelFault as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    main(*sys.argv[1:])
