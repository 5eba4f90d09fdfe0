"""The backends under test."""

import shutil

import pytest

from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend


@pytest.fixture(scope="session")
def cpu_backend(tmp_path_factory: pytest.TempPathFactory) -> CpuBackend:
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH")
    return CpuBackend(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "reference":
        return ReferenceBackend()
    backend: KernelBackend = request.getfixturevalue("cpu_backend")
    return backend
