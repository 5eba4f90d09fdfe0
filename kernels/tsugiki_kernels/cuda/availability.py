"""From a machine to its CUDA backend or its compiler, or one line that says why not.

Owns: the import of the launcher, which needs CuPy. Does not know who asks.
"""

from pathlib import Path

import torch

from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.binaries import PREBUILT, Binaries, Compiler
from tsugiki_kernels.cuda.requirements import check_machine
from tsugiki_kernels.device import CudaDevice
from tsugiki_kernels.errors import BackendUnavailable


def open_backend(device: str, cache_dir: Path, prebuilt: Path = PREBUILT) -> CudaBackend:
    """The backend of a GPU ("cuda", "cuda:1"), its kernels loaded.

    Raises:
        BackendUnavailable: CuPy is missing, or see check_machine and CupyLauncher.
    """
    try:
        from tsugiki_kernels.cuda.cupy_launcher import CupyLauncher, this_machine
    except ImportError as error:
        raise _cupy_missing(error) from error
    check_machine(this_machine())
    place = torch.device(device)
    if place.type != "cuda":
        raise BackendUnavailable(
            f"the CUDA kernels cannot serve device {device!r}: use --device cuda"
        )
    launcher = CupyLauncher(place, Binaries(cache_dir, find_nvrtc, prebuilt))
    return CudaBackend(launcher, CudaDevice(place))


def find_nvrtc() -> Compiler:
    """NVIDIA's compiler; it needs no GPU.

    Raises:
        BackendUnavailable: CuPy or NVRTC is missing.
    """
    try:
        from tsugiki_kernels.cuda.cupy_launcher import Nvrtc
    except ImportError as error:
        raise _cupy_missing(error) from error
    return Nvrtc()


def _cupy_missing(error: ImportError) -> BackendUnavailable:
    return BackendUnavailable(
        f"the CUDA kernels need CuPy: pip install 'tsugiki[cuda]' ({error.msg})"
    )
