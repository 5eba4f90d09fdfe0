"""/v1/variants: upload, look at, delete, load, unload, pin, roll back.

Owns: these routes. Does not know files' contents or memory: the engine does.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response, status
from starlette.responses import JSONResponse

from tsugiki.api.auth import Access, AccessDep, ManagementDep, model_not_found
from tsugiki.api.responses import (
    Deleted,
    VariantCard,
    VariantList,
    VariantVersions,
    documented_errors,
)
from tsugiki.api.schemas import VARIANT_NAME
from tsugiki.api.services import Services, ServicesDep
from tsugiki.api.upload import received
from tsugiki.engine.client import EngineClient, VariantInfo
from tsugiki.errors import Conflict, InvalidRequest

Operation = Callable[[str, Services], Awaitable[Response]]

router = APIRouter(tags=["variants"])
management = APIRouter(tags=["variants"], dependencies=[ManagementDep])


def _visible_name(name: Annotated[str, Path(pattern=VARIANT_NAME)], access: AccessDep) -> str:
    access.require_sight(name)
    return name


NameDep = Annotated[str, Depends(_visible_name)]


@router.get("/v1/variants", response_model=VariantList, responses=documented_errors())
async def list_variants(services: ServicesDep, access: AccessDep) -> Response:
    """Every version that the caller may see."""
    cards = [variant_card(info) for info in _visible(services.engine, access)]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/variants/{name}", response_model=VariantVersions, responses=documented_errors(404))
async def get_variant(name: NameDep, services: ServicesDep, access: AccessDep) -> Response:
    """The active version of a variant, and all of them."""
    versions = [info for info in _visible(services.engine, access) if info.name == name]
    if not versions:
        raise model_not_found(name)
    active = next((info for info in versions if info.active), versions[0])
    return JSONResponse(
        {**variant_card(active), "versions": [variant_card(info) for info in versions]}
    )


@management.put(
    "/v1/variants/{name}",
    response_model=VariantCard,
    status_code=status.HTTP_201_CREATED,
    responses={
        200: {"model": VariantCard, "description": "this name has this digest already"},
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
    request: Request,
    name: NameDep,
    services: ServicesDep,
    pin: bool = False,
    activate: bool = True,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Take the body as a variant file: verified whole, then visible at once."""
    engine = services.engine
    if name == engine.models()[0].id:
        raise InvalidRequest(f"{name!r} is the base; choose another name", param="name")
    if if_none_match == "*" and any(info.name == name for info in engine.variants()):
        raise Conflict(f"{name!r} exists; leave If-None-Match out to add a version")
    async with received(request, engine.upload_area(), services.open_upload) as path:
        info, new = await engine.put_variant(name, path, pin=pin, activate=activate)
    return JSONResponse(variant_card(info), status_code=201 if new else 200)


@management.delete(
    "/v1/variants/{name}", response_model=Deleted, responses=documented_errors(403, 404, 409)
)
async def delete_variant(name: NameDep, services: ServicesDep) -> Response:
    """Stop new requests, let running ones finish, free memory and disk."""
    freed = await services.engine.delete_variant(name)
    return JSONResponse({"name": name, "deleted": True, "bytes_freed": freed})


def _operation(verb: str) -> Callable[[Operation], Operation]:
    route: Callable[[Operation], Operation] = management.post(
        f"/v1/variants/{{name}}/{verb}",
        response_model=VariantCard,
        responses=documented_errors(403, 404, 409, 507),
    )
    return route


@_operation("load")
async def load_variant(name: NameDep, services: ServicesDep) -> Response:
    """Make it resident."""
    return JSONResponse(variant_card(await services.engine.load_variant(name)))


@_operation("unload")
async def unload_variant(name: NameDep, services: ServicesDep) -> Response:
    """Drop it from memory once no request uses it."""
    info, freed = await services.engine.unload_variant(name)
    return JSONResponse({**variant_card(info), "bytes_freed": freed})


@_operation("pin")
async def pin_variant(name: NameDep, services: ServicesDep) -> Response:
    """Keep it resident."""
    return JSONResponse(variant_card(await services.engine.pin_variant(name, True)))


@_operation("unpin")
async def unpin_variant(name: NameDep, services: ServicesDep) -> Response:
    """Let it be evicted when idle."""
    return JSONResponse(variant_card(await services.engine.pin_variant(name, False)))


@_operation("rollback")
async def rollback_variant(name: NameDep, services: ServicesDep) -> Response:
    """Make the previously active version the active one."""
    return JSONResponse(variant_card(await services.engine.rollback_variant(name)))


def _visible(engine: EngineClient, access: Access) -> list[VariantInfo]:
    return [info for info in engine.variants() if access.sees(info.name)]


def variant_card(info: VariantInfo) -> dict[str, Any]:
    """The JSON form of one version."""
    return asdict(info) | {"coverage": dict(info.coverage)}
