"""The backends under test."""

import pytest

from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "reference":
        return ReferenceBackend()
    backend: KernelBackend = request.getfixturevalue("cpu_backend")
    return backend
