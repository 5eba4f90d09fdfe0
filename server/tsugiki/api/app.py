"""The HTTP application: routes, middlewares and life cycle put together.

Owns: `create_app`. Does not know what any route does.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tsugiki import __version__
from tsugiki.api import (
    adapters,
    chat,
    completions,
    errors,
    health,
    models,
    tokenization,
    variants,
)
from tsugiki.api.auth import AuthMiddleware
from tsugiki.api.body_limit import BodyLimitMiddleware
from tsugiki.api.metrics import Metrics
from tsugiki.api.record import RecordMiddleware
from tsugiki.api.services import OpenUpload, Services
from tsugiki.api.upload import open_exclusively
from tsugiki.config import ServeConfig
from tsugiki.engine.client import EngineClient


def create_app(
    engine_client: EngineClient,
    config: ServeConfig,
    *,
    open_upload: OpenUpload = open_exclusively,
) -> FastAPI:
    """The application over an engine, which it starts and stops with its own life cycle.

    Args:
        engine_client: all that the API knows of the engine.
        config: limits, keys, directories.
        open_upload: opens the temporary file of an upload (tests fill disks with it).
    """
    services = Services(engine_client, config, Metrics(engine_client), open_upload)
    app = FastAPI(
        title="tsugiki",
        version=__version__,
        summary="One base language model, hundreds of compressed fine-tunes",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.services = services
    errors.install(app)
    for module in (chat, completions, tokenization, models, variants, adapters, health):
        app.include_router(module.router)
    app.include_router(variants.management)
    # The last added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=config.max_body_bytes,
        max_upload_bytes=config.max_upload_bytes,
    )
    app.add_middleware(AuthMiddleware, keys=config.keys)
    app.add_middleware(RecordMiddleware, sink=services.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    services: Services = app.state.services
    await services.engine.start()
    yield
    # Not reached when the process is told twice to end: then nothing is waited for.
    if services.engine.alive():
        await services.engine.stop(services.config.drain_seconds)
