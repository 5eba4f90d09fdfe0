"""The GPU's launcher: CuPy compiles the sources and starts their kernels on torch's tensors.

Owns: everything that CuPy is used for; no other module imports it. Tensors go to a kernel by their
data pointer, so no array is wrapped and every dtype of torch will do. The stream is torch's current
one, asked for at each launch: inside a graph capture that is the capturing stream.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import torch
from cupy.cuda import compiler, driver, runtime
from torch import Tensor

from tsugiki_kernels.cuda.binaries import Binaries, Kind
from tsugiki_kernels.cuda.kernels import kernel_of
from tsugiki_kernels.cuda.launcher import Argument, Float32, Int32, check_launch
from tsugiki_kernels.cuda.requirements import Machine, architecture, check_capability
from tsugiki_kernels.cuda.sources import OPTIONS, SOURCES, sources
from tsugiki_kernels.errors import BackendUnavailable, BadArgument, CompileFailed

log = logging.getLogger(__name__)


class Nvrtc:
    """NVIDIA's run-time compiler as CuPy calls it; needs no device."""

    def __init__(self) -> None:
        """Find the library.

        Raises:
            BackendUnavailable: it is not installed.
        """
        try:
            major, minor = cupy.cuda.nvrtc.getVersion()
        except Exception as error:  # CuPy's loader raises errors of several libraries
            raise BackendUnavailable(
                f"the CUDA kernels need NVRTC: pip install 'tsugiki[cuda]' ({error})"
            ) from error
        self.version = f"NVRTC {major}.{minor}"

    def compile(self, source: Path, architecture: str, kind: Kind) -> bytes:
        """See Compiler.compile."""
        options = (*OPTIONS, f"-I{SOURCES}", f"-arch={architecture}")
        # compile_using_nvrtc, CuPy's public way, asks for a device even when told an architecture
        program = compiler._NVRTCProgram(source.read_text(), source.name, method=kind)
        try:
            compiled: bytes = program.compile(options)[0]
        except compiler.CompileException as error:
            raise CompileFailed(
                f"{source.name} does not compile for {architecture}:\n{error}"
            ) from error
        # CuPy takes a cubin's last byte for the end of a string (of PTX it is) and drops it
        return compiled + b"\0" if kind == "cubin" else compiled


@dataclass(slots=True)
class _Kernel:
    """A loaded kernel and its limits."""

    start: Any  # cupy.RawKernel
    threads: int  # most of a block: what its registers allow
    shared_bytes: int  # dynamic shared memory that it may use now


class CupyLauncher:
    """Starts kernels on one GPU; see Launcher."""

    def __init__(self, device: torch.device, binaries: Binaries) -> None:
        """Load every module, compiling those that are not there yet.

        Raises:
            BackendUnavailable: the GPU is too old or refuses a module; see Binaries.
        """
        self.device = torch.device("cuda", device.index or 0)
        facts = torch.cuda.get_device_properties(self.device)
        self.multiprocessors: int = facts.multi_processor_count
        self.capability = (facts.major, facts.minor)
        check_capability(facts.name, self.capability)
        limits = cupy.cuda.Device(self.device.index).attributes
        self._most_shared = int(limits["MaxSharedMemoryPerBlockOptin"])
        self._kernels: dict[str, _Kernel] = {}
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().synchronize()  # CuPy joins the context that torch makes
            self._modules = {source: self._load(source, binaries) for source in sources()}

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """See Launcher.launch."""
        check_launch(name, self.device, grid, block, args)
        with torch.cuda.device(self.device):
            kernel = self._kernels.get(name) or self._get(name)
            self._check_limits(name, kernel, block, shared_bytes)
            values = tuple(map(_value, args))
            stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(self.device))
            kernel.start(grid, block, values, shared_mem=shared_bytes, stream=stream)

    def _load(self, source: Path, binaries: Binaries) -> Any:
        """The module of a source: ahead of time where the GPU takes that, else compiled."""
        prebuilt = binaries.prebuilt(source)
        if prebuilt is not None:
            try:
                return _module(prebuilt)
            except driver.CUDADriverError as error:
                log.warning("%s is not for this GPU (%s): compiling its source", prebuilt, error)
        path = binaries.compiled(source, architecture(self.capability))
        try:
            return _module(path)
        except driver.CUDADriverError as error:
            raise BackendUnavailable(
                f"cannot load {path}: {error}; delete it to rebuild"
            ) from error

    def _get(self, name: str) -> _Kernel:
        """Look a kernel up in its module.

        Raises:
            BadArgument: there is none, or a graph is being captured: what is loaded lazily would
                end the capture.
        """
        if torch.cuda.is_current_stream_capturing():
            raise BadArgument(f"{name}: launched for the first time while a graph is captured")
        start = self._modules[SOURCES / kernel_of(name).source].get_function(name)
        try:
            kernel = _Kernel(start, start.max_threads_per_block, 0)
        except driver.CUDADriverError as error:
            raise BadArgument(f"{name}: no kernel of this name ({error})") from error
        self._kernels[name] = kernel
        return kernel

    def _check_limits(
        self, name: str, kernel: _Kernel, block: tuple[int, ...], shared_bytes: int
    ) -> None:
        threads = torch.Size(block).numel()
        if threads > kernel.threads:
            raise BadArgument(
                f"{name}: a block of {threads} threads; its registers allow {kernel.threads}"
            )
        if shared_bytes > self._most_shared:
            raise BadArgument(
                f"{name}: {shared_bytes} bytes of shared memory; a block of this GPU "
                f"({architecture(self.capability)}) has at most {self._most_shared}"
            )
        if shared_bytes > kernel.shared_bytes:
            kernel.start.max_dynamic_shared_size_bytes = shared_bytes
            kernel.shared_bytes = shared_bytes


def this_machine() -> Machine:
    """What can be found out about this machine; raises nothing."""
    try:
        version = int(runtime.driverGetVersion())
    except runtime.CUDARuntimeError:
        version = 0
    return Machine(version, torch.version.cuda, torch.cuda.device_count())


def _module(path: Path) -> Any:
    module = cupy.RawModule(path=str(path))
    module.compile()  # loads it, on the current device
    return module


def _value(argument: Argument) -> object:
    """What CuPy passes on: an int as 64 bits, numpy's scalars as wide as they are."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if argument is None:
        return 0
    if isinstance(argument, Int32):
        return np.int32(argument.value)
    if isinstance(argument, Float32):
        return np.float32(argument.value)
    return np.int64(argument.value)
