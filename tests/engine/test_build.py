"""What the composition of an engine looks at first."""

from pathlib import Path

import pytest

from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki.errors import ConfigError
from tsugiki.variants.store import claim


def test_a_second_server_of_a_directory_is_refused_before_it_loads_a_base(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held is not None
    with pytest.raises(ConfigError, match="in use by another server"):
        create_engine(ServeConfig(base=str(tmp_path / "no base is here"), variants=tmp_path))
    held.release()
