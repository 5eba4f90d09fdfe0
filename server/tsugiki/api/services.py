"""What routes are given: the engine, the settings, the metrics, and how uploads are written.

Owns: `Services` and its injection. Does not know any route.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import Depends, Request

from tsugiki.api.metrics import Metrics
from tsugiki.config import ServeConfig
from tsugiki.engine.client import EngineClient

OpenUpload = Callable[[Path], BinaryIO]


@dataclass(frozen=True, slots=True)
class Services:
    """One per application; immutable."""

    engine: EngineClient
    config: ServeConfig
    metrics: Metrics
    open_upload: OpenUpload


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
