"""Uploads that go wrong: nothing of them stays."""

import errno
import io
import os
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer

MIB = 2**20


class FullDisk(io.FileIO):
    """A file on a disk with room for one MiB."""

    def __init__(self, path: Path, mode: str = "xb") -> None:
        super().__init__(path, mode)
        self._room = MIB

    def write(self, content: Any, /) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(content[: self._room])
        self._room -= written
        return written


def uploads(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "uploads").iterdir())


def test_a_full_disk_is_507_and_leaves_nothing(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path
) -> None:
    with make_client(open_upload=FullDisk) as client:
        response = client.put("/v1/variants/big", content=b"x" * 3 * MIB)
    assert response.status_code == 507
    assert response.json()["error"]["code"] == "insufficient_storage"
    assert uploads(tmp_path) == []
    assert "big" not in engine.versions


def test_another_disk_error_is_a_500_and_leaves_nothing(
    make_client: MakeClient, tmp_path: Path
) -> None:
    def broken(path: Path) -> Any:
        raise OSError(errno.EIO, "broken")

    with make_client(open_upload=broken) as client:
        assert client.put("/v1/variants/big", content=b"x").status_code == 500
    assert uploads(tmp_path) == []


@pytest.mark.parametrize("stated", [True, False])
def test_an_oversized_upload_is_413_and_leaves_nothing(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path, stated: bool
) -> None:
    content: Any = b"x" * 2 * MIB if stated else iter([b"x" * MIB] * 2)
    with make_client(max_upload_bytes=MIB) as client:
        response = client.put("/v1/variants/big", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert not (tmp_path / "uploads").exists() or uploads(tmp_path) == []
    assert engine.uploaded == b""


def test_a_client_that_leaves_mid_body_leaves_nothing(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    area = tmp_path / "uploads"
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        head = "PUT /v1/variants/half HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 2 * MIB)
        until(lambda: area.exists() and any(area.iterdir()))
    until(lambda: not any(area.iterdir()))
    assert engine.uploaded == b""
    assert httpx.get(f"{live.url}/v1/variants/half").status_code == 404


def test_an_upload_reaches_the_engine_whole(client: TestClient, engine: FakeEngine) -> None:
    content = os.urandom(2 * MIB + 17)
    assert client.put("/v1/variants/big", content=content).status_code == 201
    assert engine.uploaded == content


def until(condition: Any, seconds: float = 10.0) -> None:
    """Return when the condition holds; the server works in another thread."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen in time")
