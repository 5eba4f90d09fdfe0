"""Which backend serves: decided once at start, shown in /health.

auto: the fastest that this machine can offer. Where that fails (no C++ compiler and no libraries
built ahead of time; a GPU whose kernels cannot be loaded) it is the reference, after one warning,
and the choice says why. A backend asked for by name is given or refused.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tsugiki_kernels.cpu import build
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.cuda.availability import open_backend
from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

NAMES = ("auto", "reference", "cpu", "cuda")

OpenCuda = Callable[[str, Path], KernelBackend]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that serves."""

    kernels: KernelBackend
    fallback: str | None = None  # why it is the reference although auto wanted another


def choose(
    name: str,
    device: str = "cpu",
    cache_dir: Path | None = None,
    *,
    find_compiler: build.FindCompiler = build.find_compiler,
    prebuilt: Path = build.PREBUILT,
    open_cuda: OpenCuda = open_backend,
) -> Choice:
    """The backend of this name for tensors on `device` ("cpu", "cuda", "cuda:1" ...).

    `cache_dir` holds compiled kernels; None: ~/.cache/tsugiki/kernels.

    Raises:
        BackendUnavailable: an unknown name, or one that this machine or build cannot offer.
    """
    if name not in NAMES:
        raise BackendUnavailable(f"unknown kernels {name!r}: choose one of {', '.join(NAMES)}")
    if name == "reference":
        return Choice(ReferenceBackend())
    cache = cache_dir or Path.home() / ".cache" / "tsugiki" / "kernels"
    on_cpu = device.partition(":")[0] == "cpu"
    if name == "cpu" and not on_cpu:
        raise BackendUnavailable(f"the CPU kernels cannot serve device {device!r}")
    try:
        if name == "cuda" or not on_cpu:
            return Choice(open_cuda(device, cache))
        return Choice(CpuBackend(cache, find_compiler, prebuilt))
    except BackendUnavailable as error:
        if name != "auto":
            raise
        log.warning("serving with the slow reference kernels: %s", error)
        return Choice(ReferenceBackend(), str(error))


def backend(name: str, device: str = "cpu", cache_dir: Path | None = None) -> KernelBackend:
    """The kernels of `choose`."""
    return choose(name, device, cache_dir).kernels
