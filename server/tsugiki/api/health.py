"""/health (alive), /ready (serving), /metrics.

Owns: these routes. Does not know what is measured.
"""

import math
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from tsugiki.api.responses import ErrorAnswer, Health
from tsugiki.api.services import ServicesDep
from tsugiki.errors import Unavailable

router = APIRouter(tags=["operations"])

_NOT_NOW: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorAnswer},
    500: {"model": ErrorAnswer},
}

# The route's own media type is text; errors are JSON all the same.
_ERROR_SCHEMA = {"$ref": "#/components/schemas/ErrorAnswer"}
_PLAIN_ERROR: dict[str, Any] = {"content": {"application/json": {"schema": _ERROR_SCHEMA}}}


@router.get("/health", response_model=Health, responses=_NOT_NOW)
async def health(services: ServicesDep) -> Response:
    """200 while the engine lives, with how it computes; needs no key."""
    if not services.engine.alive():
        raise Unavailable("the engine is not running")
    return JSONResponse({"status": "ok", **asdict(services.engine.stats())})


@router.get("/ready", response_model=Health, responses={**_NOT_NOW, 401: {"model": ErrorAnswer}})
async def ready(services: ServicesDep) -> Response:
    """200 while new requests are taken."""
    if services.engine.draining():
        raise Unavailable("draining", retry_after=math.ceil(services.config.drain_seconds))
    if not services.engine.alive():
        raise Unavailable("the engine is not running")
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    responses={401: _PLAIN_ERROR, 500: _PLAIN_ERROR},
    response_class=PlainTextResponse,
)
async def metrics(services: ServicesDep) -> Response:
    """Prometheus exposition."""
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)
