"""An empty variants directory."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty variants directory."""
    directory = tmp_path / "variants"
    directory.mkdir()
    return directory
