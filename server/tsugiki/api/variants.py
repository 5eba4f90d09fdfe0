"""/v1/variants: look at, activate, delete, load, unload, pin, roll back.

Owns: these routes. Does not know files' contents or memory: the engine does.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from starlette.responses import JSONResponse

from tsugiki.api.auth import Access, AccessDep, ManagementDep, model_not_found
from tsugiki.api.responses import (
    Deleted,
    VariantCard,
    VariantHistory,
    VariantList,
    VariantVersions,
    documented_errors,
)
from tsugiki.api.schemas import DIGEST, VARIANT_NAME, ActivateBody, CanaryBody
from tsugiki.api.services import ServicesDep
from tsugiki.engine.client import EngineClient
from tsugiki.engine.variant_info import VariantInfo
from tsugiki.errors import InvalidRequest

ROUTES = ("events",)  # beside /v1/variants/{name}
Operation = Callable[..., Awaitable[Response]]

router = APIRouter(tags=["variants"])
management = APIRouter(tags=["variants"], dependencies=[ManagementDep])


def _visible_name(name: Annotated[str, Path(pattern=VARIANT_NAME)], access: AccessDep) -> str:
    access.require_sight(name)
    return name


NameDep = Annotated[str, Depends(_visible_name)]
DigestQuery = Query(pattern=DIGEST, description="sha256: and 12 to 64 hex digits")


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


@router.get(
    "/v1/variants/{name}/history",
    response_model=VariantHistory,
    responses=documented_errors(404),
)
async def get_history(name: NameDep, services: ServicesDep) -> Response:
    """What was done to a variant, oldest first."""
    entries = await services.engine.variant_history(name)
    return JSONResponse({"object": "list", "name": name, "data": list(map(asdict, entries))})


@management.delete(
    "/v1/variants/{name}", response_model=Deleted, responses=documented_errors(403, 404, 409)
)
async def delete_variant(
    name: NameDep, services: ServicesDep, digest: Annotated[str | None, DigestQuery] = None
) -> Response:
    """Stop new requests, let running ones finish, free memory and disk: of a variant, or with
    `digest` of one version that is not the active one."""
    if digest is None:
        freed = await services.engine.delete_variant(name)
    else:
        freed = await services.engine.delete_version(name, digest)
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


@_operation("activate")
async def activate_variant(name: NameDep, body: ActivateBody, services: ServicesDep) -> Response:
    """Make this version the one that the bare name means; a canary ends."""
    return JSONResponse(variant_card(await services.engine.activate_variant(name, body.digest)))


@_operation("canary")
async def canary_variant(name: NameDep, body: CanaryBody, services: ServicesDep) -> Response:
    """Answer so many percent of the name's `user`s with this version; 0 ends it."""
    info = await services.engine.canary_variant(name, body.digest, body.percent)
    return JSONResponse(variant_card(info))


@_operation("rollback")
async def rollback_variant(name: NameDep, services: ServicesDep) -> Response:
    """Make the previously active version the active one."""
    return JSONResponse(variant_card(await services.engine.rollback_variant(name)))


def _visible(engine: EngineClient, access: Access) -> list[VariantInfo]:
    return [info for info in engine.variants() if access.sees(info.name)]


def refuse_taken_name(name: str, engine: EngineClient, param: str) -> None:
    """Refuse a new variant a name that means something else already.

    Raises:
        InvalidRequest: the base's id, or the last part of a route.
    """
    if name == engine.base().id:
        raise InvalidRequest(f"{name!r} is the base; choose another name", param=param)
    if name in ROUTES:
        raise InvalidRequest(f"{name!r} is a route of this server; choose another", param=param)


def variant_card(info: VariantInfo) -> dict[str, Any]:
    """The JSON form of one version."""
    return asdict(info) | {"coverage": dict(info.coverage)}
