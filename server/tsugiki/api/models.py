"""/v1/models: the base and the variants, as OpenAI lists models.

Owns: these routes. Does not know where variants come from.
"""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from tsugiki.api.auth import AccessDep, model_not_found
from tsugiki.api.responses import ModelCard, ModelList, documented_errors
from tsugiki.api.services import ServicesDep
from tsugiki.engine.client import EngineClient
from tsugiki.engine.request import VariantRef
from tsugiki.engine.variant_info import ModelInfo

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=documented_errors())
async def list_models(services: ServicesDep, access: AccessDep) -> Response:
    """The base first, then the variants that the caller may use."""
    cards = [_card(model) for model in services.engine.models() if access.sees(model.id)]
    return JSONResponse({"object": "list", "data": cards})


@router.get(
    "/v1/models/{model_id:path}", response_model=ModelCard, responses=documented_errors(404)
)
async def get_model(model_id: str, services: ServicesDep, access: AccessDep) -> Response:
    """One model by the name that requests use, `name@sha256:...` included; slashes may be raw."""
    return JSONResponse(_card(_find(services.engine, access.resolve(model_id))))


def _find(engine: EngineClient, variant: VariantRef) -> ModelInfo:
    if variant.digest is None:
        return engine.base()
    for model in engine.models():
        if model.id == variant.name and model.digest == variant.digest:
            return model
    for version in engine.variants():
        if version.name == variant.name and version.digest == variant.digest:
            base = engine.base()
            return ModelInfo(
                id=f"{version.name}@{version.digest}",
                parent=base.id,
                digest=version.digest,
                codec=version.codec,
                bytes=version.bytes,
                state=version.state,
                created=base.created,
                max_model_len=base.max_model_len,
            )
    raise model_not_found(variant.name)


def _card(model: ModelInfo) -> dict[str, Any]:
    root = model.parent or model.id
    return {**asdict(model), "object": "model", "owned_by": "tsugiki", "root": root}
