"""How a server starts and ends."""

import asyncio
import gc
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.api.fake_engine import FakeEngine
from tsugiki.api.app import create_app
from tsugiki.cli import main
from tsugiki.commands.serve import DrainingServer, bind, keep_what_was_imported
from tsugiki.config import ServeConfig
from tsugiki.errors import ConfigError


class Serving:
    """A DrainingServer in the running loop."""

    def __init__(self, tmp_path: Path) -> None:
        config = ServeConfig(base="b", variants=tmp_path, port=0, drain_seconds=9)
        self.engine = FakeEngine(uploads=tmp_path / "uploads")
        self.engine.add("tuned")
        listener = bind(config)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = DrainingServer(create_app(self.engine, config), self.engine, config)
        self.task = asyncio.create_task(self.server._serve(sockets=[listener]))

    async def started(self) -> None:
        while not self.server.started:
            await asyncio.sleep(0.01)


def test_a_signal_drains_while_the_server_still_answers(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path)
        drained = asyncio.Event()

        async def stop(drain_seconds: float) -> None:
            serving.engine.stopped_with = drain_seconds
            serving.engine.is_draining = True
            await drained.wait()
            serving.engine.is_alive = False

        serving.engine.stop = stop  # type: ignore[method-assign]
        await serving.started()
        async with httpx.AsyncClient(base_url=serving.url) as http:
            assert (await http.get("/ready")).status_code == 200
            serving.server.handle_exit(signal.SIGTERM, None)
            while serving.engine.stopped_with is None:
                await asyncio.sleep(0)
            ready = await http.get("/ready")
            assert ready.status_code == 503
            assert ready.headers["retry-after"] == "9"
            body = {"model": "tuned", "prompt": "x"}
            assert (await http.post("/v1/completions", json=body)).status_code == 503
        drained.set()
        await serving.task
        assert serving.server.ended_well
        assert serving.engine.stopped_with == 9

    asyncio.run(scenario())


def test_a_dead_engine_ends_the_server_badly(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path)
        await serving.started()
        serving.engine.is_alive = False
        await serving.task
        assert not serving.server.ended_well

    asyncio.run(scenario())


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path)

        async def stop(drain_seconds: float) -> None:
            await asyncio.Event().wait()

        serving.engine.stop = stop  # type: ignore[method-assign]
        await serving.started()
        serving.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0)
        serving.server.handle_exit(signal.SIGTERM, None)
        await serving.task
        assert not serving.server.ended_well

    asyncio.run(scenario())


def test_a_taken_port_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use"):
            bind(ServeConfig(base="b", variants=tmp_path, port=port))
        flags = ["--base", "b", "--variants", str(tmp_path), "--port", str(port)]
        assert main(["serve", *flags]) == 1
    assert "choose another --host or --port" in capsys.readouterr().err


def test_a_full_collection_leaves_alone_what_the_start_has_made() -> None:
    before = gc.get_freeze_count()
    keep_what_was_imported()
    try:
        assert gc.get_freeze_count() > before + 10_000
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()
