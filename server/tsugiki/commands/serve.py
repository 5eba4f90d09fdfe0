"""`tsugiki serve`: settings to engine to application to a listening server.

Owns: start, the two ways to end (a signal drains, a dead engine fails), logging.
Does not know routes or the engine's insides.
"""

import argparse
import asyncio
import gc
import logging
import socket
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from tsugiki.config import ServeConfig, add_serve_arguments, load_config
from tsugiki.engine.client import EngineClient
from tsugiki.errors import ConfigError

logger = logging.getLogger("tsugiki.serve")

_WATCH_SECONDS = 0.2
_CLOSE_SECONDS = 5  # for connections that stay open although their request is over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every field of ServeConfig."""
    add_serve_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a drain, 1 when the engine died.

    Raises:
        TsugikiError: bad settings, a base or variants directory that cannot be served.
    """
    config = load_config(vars(args))
    configure_logging()
    listener = bind(config)
    # Only now, so that wrong settings fail at once: this imports torch.
    from tsugiki.engine.build import create_engine

    engine = create_engine(config, convert_adapter=partial(convert_adapter, config))
    return run_server(engine, config, listener)


def run_server(engine: EngineClient, config: ServeConfig, listener: socket.socket) -> int:
    """Serve an engine until a signal; 0 after a drain, 1 when the engine died."""
    from tsugiki.api.app import create_app

    server = DrainingServer(create_app(engine, config), engine, config)
    keep_what_was_imported()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve(sockets=[listener]))
    return 0 if server.ended_well else 1


def keep_what_was_imported() -> None:
    """Take what the start has made out of the garbage collector's sight, for good.

    A full collection holds the interpreter, and with it every stream. Over the quarter million
    objects of the imported libraries it takes a tenth of a second; over what a server makes
    afterwards, a tenth of that.
    """
    gc.collect()
    gc.freeze()


def convert_adapter(config: ServeConfig, adapter: Path, out: Path) -> None:
    """Write a PEFT directory as a variant file of the server's base.

    Raises:
        CompressionRefused: more than plain LoRA, or trained on another base.
    """
    from tsugiki.compress.job import CompressJob
    from tsugiki.compress.pipeline import compress
    from tsugiki.compress.progress import Progress
    from tsugiki.model.demo_base import resolve_base

    base = resolve_base(config.base, config.cache_dir)
    job = CompressJob("lora", base, adapter, out, cache_dir=config.cache_dir)
    compress(job, Progress(quiet=True))


def configure_logging() -> None:
    """Messages to stderr; bare JSON lines, of requests and of refused uploads, to stdout."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("tsugiki.access", "tsugiki.refusals"):
        lines = logging.getLogger(name)
        lines.handlers, lines.propagate = [handler], False


def bind(config: ServeConfig) -> socket.socket:
    """The listening address, taken before anything slow; nobody is let in yet.

    Raises:
        ConfigError: it is taken, or not ours.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error.strerror}; "
            "choose another --host or --port"
        ) from error
    return listener


class DrainingServer(uvicorn.Server):
    """uvicorn, but SIGTERM first lets running requests finish while new ones are told 503."""

    def __init__(self, app: object, engine: EngineClient, config: ServeConfig) -> None:
        settings = uvicorn.Config(
            app,  # type: ignore[arg-type]  # FastAPI is an ASGI application
            http="httptools",
            ws="none",
            proxy_headers=False,  # nothing here asks for a client's address
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        super().__init__(settings)
        self._engine = engine
        self._serve_config = config
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False
        self.ended_well = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine, listen, and say where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            names = [model.id for model in self._engine.models()]
            logger.info(
                "serving %s and %d variants on http://%s:%d", names[0], len(names) - 1, host, port
            )
            self._tasks.append(asyncio.create_task(self._watch_engine()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave now."""
        if self._draining or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        self._loop.call_soon_threadsafe(lambda: self._tasks.append(self._start_drain()))

    def _start_drain(self) -> asyncio.Task[None]:
        logger.info("draining for at most %g s", self._serve_config.drain_seconds)
        return asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._engine.stop(self._serve_config.drain_seconds)
            self.ended_well = True
        finally:
            self.should_exit = True

    async def _watch_engine(self) -> None:
        while not self._draining:
            if not self._engine.alive():
                logger.error("the engine died; ending the process")
                self.should_exit = True
                return
            await asyncio.sleep(_WATCH_SECONDS)
