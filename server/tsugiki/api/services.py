"""What routes are given: the engine, the settings, the metrics, connections, uploads in progress.

Owns: `Services` and its injection. Does not know any route.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import Depends, Request

from tsugiki.api.disconnect import Disconnects
from tsugiki.api.metrics import Metrics
from tsugiki.api.partial_files import PartialFiles
from tsugiki.api.resumable import ResumableUploads
from tsugiki.config import ServeConfig
from tsugiki.engine.client import EngineClient
from tsugiki.engine.variant_info import VariantInfo

OpenUpload = Callable[[Path], BinaryIO]
Uploaded = tuple[VariantInfo, bool]  # the version and whether it is new


@dataclass(frozen=True, slots=True)
class Services:
    """One of each for an application."""

    engine: EngineClient
    config: ServeConfig
    metrics: Metrics
    disconnects: Disconnects
    open_upload: OpenUpload
    partial_files: PartialFiles
    resumable: ResumableUploads[Uploaded]


async def _services(request: Request) -> Services:  # FastAPI gives plain functions to a thread
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
