"""A fake server behind a socket, shared with the API's tests."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.config import ServeConfig


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """An engine with the variant `tuned`."""
    engine = FakeEngine(uploads=tmp_path / "uploads")
    engine.add("tuned")
    return engine


@pytest.fixture
def live(engine: FakeEngine, tmp_path: Path) -> Iterator[LiveServer]:
    """The application behind a socket."""
    config = ServeConfig(base="b", variants=tmp_path, max_upload_bytes=2**21)
    server = LiveServer(create_app(engine, config))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    server.wait_until_started()
    yield server
    server.should_exit = True
    thread.join(timeout=10)
