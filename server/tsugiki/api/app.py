"""The HTTP application: routes, middlewares and life cycle put together.

Owns: `create_app`. Does not know what any route does.
"""

import asyncio
import logging
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
    variant_stream,
    variant_upload,
    variants,
)
from tsugiki.api.auth import AuthMiddleware
from tsugiki.api.body_limit import BodyLimitMiddleware
from tsugiki.api.disconnect import Disconnects
from tsugiki.api.metrics import Metrics
from tsugiki.api.partial_files import PartialFiles
from tsugiki.api.record import RecordMiddleware
from tsugiki.api.resumable import ResumableUploads
from tsugiki.api.services import OpenUpload, Services
from tsugiki.api.upload import open_exclusively
from tsugiki.config import ServeConfig
from tsugiki.engine.client import EngineClient
from tsugiki.errors import Unsupported

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0


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
    services = _services(engine_client, config, open_upload)
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
    # The stream stands before /v1/variants/{name}, which would take its path for a name.
    for module in (chat, completions, tokenization, models, variant_stream, variants, health):
        app.include_router(module.router)
    for module in (variants, variant_upload, adapters):
        app.include_router(module.management)
    # The last added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=config.max_body_bytes,
        max_upload_bytes=config.max_upload_bytes,
    )
    app.add_middleware(AuthMiddleware, keys=config.keys)
    app.add_middleware(RecordMiddleware, sink=services.metrics)
    return app


def _services(
    engine_client: EngineClient, config: ServeConfig, open_upload: OpenUpload
) -> Services:
    area = engine_client.upload_area
    files = PartialFiles(area, most=config.max_partial_uploads, most_bytes=config.max_partial_bytes)
    return Services(
        engine=engine_client,
        config=config,
        metrics=Metrics(engine_client),
        disconnects=Disconnects(),
        open_upload=open_upload,
        partial_files=files,
        resumable=ResumableUploads(files, area),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    services: Services = app.state.services
    await services.engine.start()
    sweeping = asyncio.create_task(_sweep(services.partial_files))
    yield
    sweeping.cancel()
    # Not reached when the process is told twice to end: then nothing is waited for.
    if services.engine.alive():
        await services.engine.stop(services.config.drain_seconds)


async def _sweep(files: PartialFiles) -> None:
    """Unfinished uploads die in time, also where nobody uploads. (At start the registry sees to
    it.)"""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await asyncio.to_thread(files.sweep)
        except Unsupported:
            return  # a directory that cannot be written has no uploads
        except Exception:  # tried again
            logger.exception("old partial uploads were not removed")
