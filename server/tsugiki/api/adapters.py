"""vLLM's names for LoRA adapters, for those who migrate.

Owns: which paths a request may name. Does not know adapters: the engine converts them.
"""

import asyncio
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from tsugiki.api.auth import AccessDep, ManagementDep, model_not_found
from tsugiki.api.responses import Deleted, VariantCard, documented_errors
from tsugiki.api.schemas import LoadAdapterBody, UnloadAdapterBody
from tsugiki.api.services import ServicesDep
from tsugiki.api.variants import refuse_taken_name, variant_card
from tsugiki.errors import Conflict, InvalidRequest, Unsupported

management = APIRouter(tags=["adapters"], dependencies=[ManagementDep])


@management.post(
    "/v1/load_lora_adapter",
    response_model=VariantCard,
    responses=documented_errors(403, 404, 409, 507),
)
async def load_lora_adapter(
    body: LoadAdapterBody, services: ServicesDep, access: AccessDep
) -> Response:
    """Serve the PEFT directory `lora_path` as the variant `lora_name`."""
    path = await asyncio.to_thread(_allowed, body.lora_path, services.config.adapter_roots)
    access.require_sight(body.lora_name)
    refuse_taken_name(body.lora_name, services.engine, "lora_name")
    info = await services.engine.load_adapter(body.lora_name, path)
    return JSONResponse(variant_card(info))


@management.post(
    "/v1/unload_lora_adapter",
    response_model=Deleted,
    responses=documented_errors(403, 404, 409),
)
async def unload_lora_adapter(
    body: UnloadAdapterBody, services: ServicesDep, access: AccessDep
) -> Response:
    """Stop serving an adapter; its PEFT directory stays."""
    name = body.lora_name
    access.require_sight(name)
    versions = [info for info in services.engine.variants() if info.name == name]
    if not versions:
        raise model_not_found(name)
    if any(info.codec != "lora" for info in versions):
        raise Conflict(f"{name!r} is not a LoRA adapter; use DELETE /v1/variants/{name}")
    freed = await services.engine.delete_variant(name)
    return JSONResponse({"name": name, "deleted": True, "bytes_freed": freed})


def _allowed(path: str, roots: tuple[Path, ...]) -> Path:
    """The directory meant, with symbolic links followed, if it is under an allow-listed root."""
    if not roots:
        raise Unsupported(
            "lora_path: loading by path is off; start the server with --adapter-roots DIR, or "
            "upload with PUT /v1/variants/NAME",
            param="lora_path",
        )
    try:
        real = Path(path).resolve()
        inside = any(real.is_relative_to(root.resolve()) for root in roots)
        found = inside and real.is_dir()
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise InvalidRequest(
            f"lora_path: {path!r} is not a directory under an allowed root", param="lora_path"
        )
    return real
