"""Which backend serves: decided once at start, shown in /health.

auto: the fastest that this machine can offer; without a C++ compiler and without ahead-of-time
libraries that is the reference, after one warning. A backend asked for by name is given or refused.
"""

import logging
from pathlib import Path

from tsugiki_kernels.cpu import build
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

NAMES = ("auto", "reference", "cpu", "cuda")

log = logging.getLogger(__name__)


def backend(
    name: str,
    device: str = "cpu",
    cache_dir: Path | None = None,
    *,
    find_compiler: build.FindCompiler = build.find_compiler,
    prebuilt: Path = build.PREBUILT,
) -> KernelBackend:
    """The backend of this name for tensors on `device` ("cpu", "cuda", "cuda:1" ...).

    `cache_dir` holds compiled kernels; None: ~/.cache/tsugiki/kernels.

    Raises:
        BackendUnavailable: an unknown name, or one that this machine or build cannot offer.
    """
    if name not in NAMES:
        raise BackendUnavailable(f"unknown kernels {name!r}: choose one of {', '.join(NAMES)}")
    if name == "cuda":
        raise BackendUnavailable("no CUDA kernels in this build yet: choose the reference kernels")
    on_cpu = device.partition(":")[0] == "cpu"
    if name == "reference" or (name == "auto" and not on_cpu):
        return ReferenceBackend()
    if not on_cpu:
        raise BackendUnavailable(f"the CPU kernels cannot serve device {device!r}")
    kernels = cache_dir or Path.home() / ".cache" / "tsugiki" / "kernels"
    try:
        return CpuBackend(kernels, find_compiler, prebuilt)
    except BackendUnavailable as error:
        if name == "cpu":
            raise
        log.warning("serving with the slow reference kernels: %s", error)
        return ReferenceBackend()
