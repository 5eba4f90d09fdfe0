"""The backends under test."""

import shutil
from pathlib import Path

import pytest

from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> Path:
    """Where libraries are compiled to; kept between runs, for names carry a digest of sources."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH")
    return Path(request.config.cache.mkdir("tsugiki_kernels"))


@pytest.fixture(scope="session")
def cpu_backend(compiled: Path) -> CpuBackend:
    return CpuBackend(compiled, prebuilt=compiled / "none")


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "reference":
        return ReferenceBackend()
    backend: KernelBackend = request.getfixturevalue("cpu_backend")
    return backend
