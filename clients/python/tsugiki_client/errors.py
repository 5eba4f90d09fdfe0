"""What a call can raise.

TsugikiClientError              status, code, type, param as the server sent them
  + ConnectionFailed            no answer: not running, wrong address, cut off
  + InvalidRequest        400   a field is wrong, unsupported, or too long for the context
  + AuthenticationFailed  401
  + PermissionDenied      403
  + NotFound              404
  + Conflict              409
  + PayloadTooLarge       413
  + InvalidVariant        422   a file that must not be served
  + Overloaded            429   retry_after seconds
  + ServerError           500
  + Unavailable           503   retry_after seconds
  + StorageFull           507
"""

from collections.abc import Mapping
from typing import Any


class TsugikiClientError(Exception):
    """Base of everything this client raises."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        detail = detail or {}
        self.status = status
        self.code: str | None = detail.get("code")
        self.type: str | None = detail.get("type")
        self.param: str | None = detail.get("param")
        self.retry_after = retry_after


class ConnectionFailed(TsugikiClientError):
    """The server gave no answer."""


class InvalidRequest(TsugikiClientError):
    """400."""


class AuthenticationFailed(TsugikiClientError):
    """401."""


class PermissionDenied(TsugikiClientError):
    """403."""


class NotFound(TsugikiClientError):
    """404: no model, variant or route of this name."""


class Conflict(TsugikiClientError):
    """409."""


class PayloadTooLarge(TsugikiClientError):
    """413."""


class InvalidVariant(TsugikiClientError):
    """422."""


class Overloaded(TsugikiClientError):
    """429."""


class ServerError(TsugikiClientError):
    """500, or an answer that is not the server's."""


class Unavailable(TsugikiClientError):
    """503."""


class StorageFull(TsugikiClientError):
    """507."""


_BY_CODE: dict[str, type[TsugikiClientError]] = {
    "invalid_request": InvalidRequest,
    "context_length_exceeded": InvalidRequest,
    "unsupported": InvalidRequest,
    "invalid_api_key": AuthenticationFailed,
    "insufficient_permissions": PermissionDenied,
    "model_not_found": NotFound,
    "not_found": NotFound,
    "conflict": Conflict,
    "wrong_offset": Conflict,
    "payload_too_large": PayloadTooLarge,
    "invalid_variant": InvalidVariant,
    "wrong_base": InvalidVariant,
    "corrupt_variant": InvalidVariant,
    "probe_failed": InvalidVariant,
    "compression_refused": InvalidVariant,
    "overloaded": Overloaded,
    "unavailable": Unavailable,
    "insufficient_storage": StorageFull,
}


def error_from(
    body: Any, *, status: int | None = None, retry_after: float | None = None
) -> TsugikiClientError:
    """The error that an error body (or the error event of a stream) stands for."""
    detail = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(detail, Mapping):
        return ServerError(f"the server answered {status} without saying why", status=status)
    kind = _BY_CODE.get(str(detail.get("code")), ServerError)
    message = str(detail.get("message") or f"the server answered {status}")
    return kind(message, status=status, detail=detail, retry_after=retry_after)
