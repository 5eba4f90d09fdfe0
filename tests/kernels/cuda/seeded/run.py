"""Runs seeded kernels under a sanitizer, each in a process of its own, and prints what it said.

A sanitizer ends the process it finds something in, and must have been loaded before Python. So
test_harness.py starts this file once per flavour, with LD_PRELOAD, and this file forks per kernel.

    python run.py CACHE FLAVOUR KERNEL ...     prints JSON: kernel -> [status, what was printed]
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.kernels.cuda.executor import Executor, KernelFault
from tests.kernels.cuda.host_build import FLAVOURS

BLOCKS = {"seeded_blocks_write_one_element": 2}
FAULT = 3  # exit status of a child whose kernel the shim stopped


def run(executor: Executor, kernel: str) -> None:
    """Launch a kernel on 128 numbers, whose tensors end where the memory does."""
    x, y = torch.arange(128, dtype=torch.float32), torch.zeros(128)
    executor.launch(kernel, (BLOCKS.get(kernel, 1),), (128,), [x, y])


def in_child(executor: Executor, kernel: str) -> tuple[int, str]:
    """Exit status and output of a forked process that runs the kernel."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            try:
                run(executor, kernel)
            except KernelFault as fault:
                os.write(2, str(fault).encode())
                os._exit(FAULT)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")


def main(cache: str, flavour: str, *kernels: str) -> None:
    """Run all; one JSON object on stdout."""
    executor = Executor(Path(cache), FLAVOURS[flavour], sources=Path(__file__).parent)
    executor.build_all()
    print(json.dumps({kernel: in_child(executor, kernel) for kernel in kernels}))


if __name__ == "__main__":
    main(*sys.argv[1:])
