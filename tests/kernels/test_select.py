"""Which backend is given, and what is said when it cannot be."""

import logging
from pathlib import Path

import pytest

from tsugiki_kernels.cpu.build import find_compiler
from tsugiki_kernels.errors import BackendUnavailable, CompileFailed
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend
from tsugiki_kernels.select import backend, choose


def no_compiler() -> None:
    return None


def no_gpu(device: str, cache_dir: Path) -> KernelBackend:
    raise BackendUnavailable("no CUDA device: this machine has no NVIDIA driver")


def gpu(device: str, cache_dir: Path) -> KernelBackend:
    kernels = ReferenceBackend()
    kernels.name = f"on {device}"
    return kernels


def test_the_reference_is_given_by_name_on_any_device() -> None:
    assert backend("reference").name == "reference"
    assert backend("reference", "cuda:1").name == "reference"


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_has_the_cuda_kernels(name: str) -> None:
    choice = choose(name, "cuda:1", open_cuda=gpu)
    assert (choice.kernels.name, choice.fallback) == ("on cuda:1", None)


def test_auto_on_a_gpu_without_its_kernels_is_the_reference_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        choice = choose("auto", "cuda", open_cuda=no_gpu)
    assert choice.kernels.name == "reference"
    assert choice.fallback == "no CUDA device: this machine has no NVIDIA driver"
    assert [choice.fallback in record.getMessage() for record in caplog.records] == [True]


def test_cuda_by_name_is_given_or_refused_never_replaced() -> None:
    with pytest.raises(BackendUnavailable, match="no CUDA device"):
        choose("cuda", "cpu", open_cuda=no_gpu)


@pytest.mark.compiler
def test_auto_with_a_compiler_is_the_cpu_backend(compiled: Path) -> None:
    choice = choose("auto", cache_dir=compiled, prebuilt=compiled / "none")
    assert (choice.kernels.name, choice.fallback) == ("cpu", None)


def test_auto_without_a_compiler_is_the_reference_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        given = choose("auto", cache_dir=tmp_path, find_compiler=no_compiler, prebuilt=tmp_path)
    assert given.kernels.name == "reference"
    assert given.fallback is not None
    assert "g++" in given.fallback
    assert len(caplog.records) == 1
    assert "g++" in caplog.text


def test_cpu_without_a_compiler_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"g\+\+.*tsugiki kernels build"):
        choose("cpu", cache_dir=tmp_path, find_compiler=no_compiler, prebuilt=tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="failed"):
        choose("cpu", cache_dir=tmp_path, find_compiler=lambda: "/bin/false", prebuilt=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cpu_kernels_do_not_serve_another_device() -> None:
    with pytest.raises(BackendUnavailable, match="cuda:0"):
        backend("cpu", "cuda:0")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BackendUnavailable, match="unknown"):
        backend("fast")


@pytest.mark.compiler
def test_the_compiler_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    (tmp_path / "g++").touch(mode=0o755)
    assert find_compiler() == str(tmp_path / "g++")
