"""The application over a fake engine, in memory and behind a real socket."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.config import ServeConfig

MakeClient = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """An engine with the variants `tuned` and `adapter`."""
    engine = FakeEngine(uploads=tmp_path / "uploads")
    engine.add("tuned")
    engine.add("adapter", codec="lora")
    return engine


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    """A loopback server without keys."""
    return ServeConfig(base="base", variants=tmp_path / "variants")


@pytest.fixture
def make_client(engine: FakeEngine, tmp_path: Path) -> MakeClient:
    """`with make_client(keys=..., ...) as client:` for other settings."""

    @contextmanager
    def make(**settings: Any) -> Iterator[TestClient]:
        open_upload = settings.pop("open_upload", None)
        extra = {"open_upload": open_upload} if open_upload else {}
        config = ServeConfig(**{"base": "base", "variants": tmp_path / "variants", **settings})
        app = create_app(engine, config, **extra)
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return make


@pytest.fixture
def client(make_client: MakeClient) -> Iterator[TestClient]:
    """The application in memory."""
    with make_client() as client:
        yield client


@pytest.fixture
def live(engine: FakeEngine, config: ServeConfig) -> Iterator[LiveServer]:
    """The application behind a socket, for streams and disconnects."""
    server = LiveServer(create_app(engine, config))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    server.wait_until_started()
    yield server
    server.should_exit = True
    thread.join(timeout=10)
