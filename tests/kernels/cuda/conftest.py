"""Where kernels run under test: the executor on the CPU, and a real GPU where there is one."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.kernels.cuda.executor import ORDERS, Executor
from tests.kernels.cuda.host_build import FLAVOURS
from tests.kernels.cuda.served import Machine
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.device import CpuDevice
from tsugiki_kernels.select import Choice, choose


@pytest.fixture(scope="session")
def shim_cache(made_ahead: Path) -> Path:
    """Where the shim's libraries are kept between runs; their names carry a digest of sources."""
    return made_ahead / "shim"


@pytest.fixture(scope="session")
def seeded(shim_cache: Path) -> Path:
    """The same, for tests that want the seeded bugs with sanitizers."""
    return shim_cache


@pytest.fixture(scope="session")
def cubin_cache(made_ahead: Path) -> Path:
    """Where cubins are kept between runs; their names carry a digest of sources."""
    return made_ahead / "kernels"


@pytest.fixture(scope="session")
def executor(request: pytest.FixtureRequest, shim_cache: Path) -> Executor:
    """All kernels on the CPU; --cuda-flavour, --cuda-order and --cuda-capability choose how."""
    flavour = FLAVOURS[request.config.getoption("--cuda-flavour")]
    if shutil.which(flavour.compiler) is None:
        pytest.skip(f"no {flavour.compiler} on the PATH: no CUDA kernel was executed")
    order = request.config.getoption("--cuda-order")
    major, minor = request.config.getoption("--cuda-capability").split(".")
    assert order in ORDERS
    executor = Executor(shim_cache, flavour, order, capability=(int(major), int(minor)))
    executor.build_all()
    return executor


ON_BOTH = [
    pytest.param("executor", marks=pytest.mark.compiler),
    pytest.param("gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="session", params=ON_BOTH)
def machine(request: pytest.FixtureRequest) -> Machine:
    """What a whole server under test runs on."""
    if request.param == "gpu":
        return Machine("cuda", choose)
    executor: Launcher = request.getfixturevalue("executor")
    return Machine("cpu", lambda *_: Choice(CudaBackend(executor, CpuDevice())))


@pytest.fixture(scope="session", params=ON_BOTH)
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """What a kernel's test launches with; its tensors go to `launcher.device`."""
    if request.param == "executor":
        executor: Launcher = request.getfixturevalue("executor")
        return executor
    from tsugiki_kernels.cuda.cupy_launcher import CupyLauncher, Nvrtc

    cache: Path = request.getfixturevalue("cubin_cache")
    return CupyLauncher(torch.device("cuda"), Binaries(cache, Nvrtc))
