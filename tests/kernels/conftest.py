"""The backends under test, and what is compiled for their tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.ahead import PARTS
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

AHEAD = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to compile what the collected tests want."""
    config = session.config
    way = [config.getoption(option) for option in ("--cuda-flavour", "--cuda-capability")]
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    wanted = [name for name in PARTS if name in names]
    if wanted and way == ["plain", "8.0"] and not config.option.collectonly:
        cache = str(config.cache.mkdir("tsugiki"))
        command = [sys.executable, "-m", "tests.kernels.ahead", cache, *wanted]
        config.stash[AHEAD] = subprocess.Popen(
            command, cwd=config.rootpath, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what nobody waited for."""
    process = config.stash.get(AHEAD, None)
    if process is not None:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def made_ahead(pytestconfig: pytest.Config, tsugiki_cache: Path) -> Path:
    """The cache of compiled things, when all that was begun is there."""
    process = pytestconfig.stash.get(AHEAD, None)
    if process is not None:
        process.wait()
    return tsugiki_cache


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.compiler)])
def kernels(request: pytest.FixtureRequest) -> KernelBackend:
    if request.param == "reference":
        return ReferenceBackend()
    backend: KernelBackend = request.getfixturevalue("cpu_backend")
    return backend
