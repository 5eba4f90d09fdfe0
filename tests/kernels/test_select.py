"""Which backend is given, and what is said when it cannot be."""

import logging
from pathlib import Path

import pytest

from tsugiki_kernels.cpu.build import find_compiler
from tsugiki_kernels.errors import BackendUnavailable, CompileFailed
from tsugiki_kernels.select import backend


def no_compiler() -> None:
    return None


def test_the_reference_is_given_by_name_on_any_device() -> None:
    assert backend("reference").name == "reference"
    assert backend("reference", "cuda:1").name == "reference"


def test_auto_on_another_device_than_the_cpu_is_the_reference() -> None:
    assert backend("auto", "cuda").name == "reference"


@pytest.mark.compiler
def test_auto_with_a_compiler_is_the_cpu_backend(compiled: Path) -> None:
    assert backend("auto", cache_dir=compiled, prebuilt=compiled / "none").name == "cpu"


def test_auto_without_a_compiler_is_the_reference_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        given = backend("auto", cache_dir=tmp_path, find_compiler=no_compiler, prebuilt=tmp_path)
    assert given.name == "reference"
    assert len(caplog.records) == 1
    assert "g++" in caplog.text


def test_cpu_without_a_compiler_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"g\+\+.*tsugiki kernels build"):
        backend("cpu", cache_dir=tmp_path, find_compiler=no_compiler, prebuilt=tmp_path)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="failed"):
        backend("cpu", cache_dir=tmp_path, find_compiler=lambda: "/bin/false", prebuilt=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cpu_kernels_do_not_serve_another_device() -> None:
    with pytest.raises(BackendUnavailable, match="cuda:0"):
        backend("cpu", "cuda:0")


@pytest.mark.parametrize(("name", "words"), [("cuda", "no CUDA kernels"), ("fast", "unknown")])
def test_names_that_cannot_be_given_are_refused(name: str, words: str) -> None:
    with pytest.raises(BackendUnavailable, match=words):
        backend(name)


@pytest.mark.compiler
def test_the_compiler_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    (tmp_path / "g++").touch(mode=0o755)
    assert find_compiler() == str(tmp_path / "g++")
