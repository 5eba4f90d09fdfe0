"""`--base`: a path, or the demo base converted once into the cache."""

from pathlib import Path

import pytest

from tsugiki.errors import ConfigError, UnsupportedModel
from tsugiki.model import demo_base as module
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.demo_base import DEMO_FINGERPRINT, ensure_demo_base, resolve_base
from tsugiki.model.fingerprint import base_fingerprint


def test_a_path_is_taken_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    assert resolve_base(str(tiny_base), tmp_path) == tiny_base


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        resolve_base(str(tmp_path / "nowhere"), tmp_path)


def test_a_missing_package_is_named_with_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEEDED", {"no_such_package_here": "no-such-package"})
    monkeypatch.setattr(module, "GGUF_PACKAGE", "no_such_package_here")
    with pytest.raises(ConfigError, match="pip install no-such-package"):
        resolve_base("demo", tmp_path)


def test_a_changed_demo_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "smollm2-135m-instruct").symlink_to(tiny_base)
    with pytest.raises(UnsupportedModel, match="expected sha256:"):
        ensure_demo_base(tmp_path)


@pytest.mark.demo
def test_the_demo_base_is_converted_once_and_has_the_known_fingerprint(demo_base: Path) -> None:
    assert demo_base.name == "smollm2-135m-instruct"
    assert base_fingerprint(open_checkpoint(demo_base), None) == DEMO_FINGERPRINT
    assert [p.name for p in demo_base.parent.iterdir()] == [demo_base.name]
    assert (demo_base / "chat_template.jinja").is_file()
    before = (demo_base / "model.safetensors").stat().st_mtime_ns
    assert resolve_base("demo", demo_base.parent.parent) == demo_base
    assert (demo_base / "model.safetensors").stat().st_mtime_ns == before
