"""PUT /v1/variants/{name}: a variant file comes in, in one request or in several.

Owns: this route, what is counted and logged of uploads. The file is out of sight until the engine
has verified it; a refused one leaves one log line. Does not know files' contents.
"""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response, status
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tsugiki.api.auth import ManagementDep
from tsugiki.api.content_range import ContentRange, parse_content_range
from tsugiki.api.metrics import Metrics
from tsugiki.api.record import RequestRecord, record_of
from tsugiki.api.responses import UploadProgress, VariantCard, documented_errors
from tsugiki.api.resumable import Chunk, Progress
from tsugiki.api.schemas import UPLOAD_ID
from tsugiki.api.services import Services, ServicesDep, Uploaded
from tsugiki.api.upload import received
from tsugiki.api.variants import NameDep, refuse_taken_name, variant_card
from tsugiki.errors import (
    Conflict,
    InvalidArtifact,
    InvalidRequest,
    PayloadTooLarge,
    ProbeFailed,
    TsugikiError,
)

refusals = logging.getLogger("tsugiki.refusals")

management = APIRouter(tags=["variants"], dependencies=[ManagementDep])

OF_THE_FILE = (InvalidArtifact, ProbeFailed)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says beside the file; FastAPI fills it in."""

    name: NameDep
    pin: bool = False
    activate: bool = True
    if_none_match: Annotated[str | None, Header()] = None
    content_range: Annotated[str | None, Header()] = None
    x_upload_id: Annotated[str | None, Header(pattern=UPLOAD_ID)] = None
    x_tsugiki_signature: Annotated[str | None, Header(max_length=256)] = None


@management.put(
    "/v1/variants/{name}",
    response_model=VariantCard,
    status_code=status.HTTP_201_CREATED,
    responses={
        200: {"model": VariantCard, "description": "this name has this digest already"},
        308: {"model": UploadProgress, "description": "the header Range says how far it is"},
        **documented_errors(403, 404, 409, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def put_variant(
    request: Request, wish: Annotated[Wish, Depends()], services: ServicesDep
) -> Response:
    """Take the body as a variant file: verified whole, then visible at once.

    With `X-Upload-Id` and `Content-Range: bytes START-END/TOTAL` the body is a part of it, and the
    answer 308 until the last part is here; `Content-Range: bytes */TOTAL` asks how far it is.
    """
    with _counted(services.metrics, wish.name, record_of(request)):
        part = _part(wish)
        refuse_taken_name(wish.name, services.engine, "name")
        if wish.if_none_match == "*" and (part is None or part.start is not None):
            _refuse_existing(wish.name, services)
        if part is None:
            outcome = await _whole(request, wish, services)
        else:
            outcome = await _resumed(request, wish, part, services)
    if isinstance(outcome, Progress):
        return _progress(wish, outcome)
    info, new = outcome
    return JSONResponse(variant_card(info), status_code=201 if new else 200)


async def _whole(request: Request, wish: Wish, services: Services) -> Uploaded | Progress:
    area = await asyncio.to_thread(services.engine.upload_area)
    async with received(request, area, services.open_upload) as path:
        return await _put(path, wish, record_of(request), services)


async def _resumed(
    request: Request, wish: Wish, part: ContentRange, services: Services
) -> Uploaded | Progress:
    _refuse_large(part, request, services.config.max_upload_bytes)
    chunk = Chunk(str(wish.x_upload_id), wish.name, part, request.stream())
    record = record_of(request)
    return await services.resumable.take(chunk, lambda path: _put(path, wish, record, services))


async def _put(path: Path, wish: Wish, record: RequestRecord, services: Services) -> Uploaded:
    """Give a whole file to the engine; a refusal is logged, also when its client has left."""
    size = (await asyncio.to_thread(path.stat)).st_size
    try:
        info, new = await services.engine.put_variant(
            wish.name,
            path,
            pin=wish.pin,
            activate=wish.activate,
            signature=wish.x_tsugiki_signature,
        )
    except OF_THE_FILE as error:
        refusals.warning(_refusal(error, wish.name, size, record))
        raise
    services.metrics.upload("created" if new else "unchanged")
    return info, new


def _refusal(error: TsugikiError, name: str, size: int | None, record: RequestRecord) -> str:
    line = {
        "event": "upload refused",
        "id": record.id,
        "name": name,
        "bytes": size,
        "code": error.code,
        "reason": str(error),
        "tenant": record.tenant or None,
    }
    return json.dumps({key: value for key, value in line.items() if value is not None})


@contextmanager
def _counted(metrics: Metrics, name: str, record: RequestRecord) -> Iterator[None]:
    """Count how an upload that did not become a version ended, by the code of its error, and log
    what `_put` has not."""
    try:
        yield
    except TsugikiError as error:
        metrics.upload(error.code)
        if not isinstance(error, OF_THE_FILE):
            refusals.warning(_refusal(error, name, None, record))
        raise
    except HTTPException as error:  # the body limit's, see body_limit.py
        metrics.upload(PayloadTooLarge.code)
        refusals.warning(_refusal(PayloadTooLarge(error.detail), name, None, record))
        raise
    except ClientDisconnect:
        metrics.upload("interrupted")
        raise


def _part(wish: Wish) -> ContentRange | None:
    if wish.content_range is None and wish.x_upload_id is None:
        return None
    if wish.content_range is None or wish.x_upload_id is None:
        raise InvalidRequest(
            "a resumable upload needs both X-Upload-Id and Content-Range: bytes START-END/TOTAL",
            param="Content-Range" if wish.content_range is None else "X-Upload-Id",
        )
    return parse_content_range(wish.content_range)


def _refuse_existing(name: str, services: Services) -> None:
    if any(info.name == name for info in services.engine.variants()):
        raise Conflict(f"{name!r} exists; leave If-None-Match out to add a version")


def _refuse_large(wanted: ContentRange, request: Request, limit: int) -> None:
    """Before the body is read."""
    if wanted.total > limit:
        raise PayloadTooLarge(f"an upload of {wanted.total} bytes is over the limit of {limit}")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) != wanted.length:
        raise InvalidRequest(
            f"the body has {stated} bytes, its Content-Range {wanted.length}",
            param="Content-Range",
        )


def _progress(wish: Wish, progress: Progress) -> Response:
    headers = {"Range": f"bytes=0-{progress.received - 1}"} if progress.received else {}
    body: dict[str, Any] = {
        "upload_id": wish.x_upload_id,
        "received": progress.received,
        "total": progress.total,
    }
    return JSONResponse(body, status_code=status.HTTP_308_PERMANENT_REDIRECT, headers=headers)
