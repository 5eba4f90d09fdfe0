"""Errors as HTTP answers: one handler over the exception tree, OpenAI's shape everywhere.

Owns: the error body, its status and headers, and what framework errors (validation, unknown route,
malformed JSON) become. Does not know what raises them.
"""

import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tsugiki.errors import InvalidRequest, TsugikiError

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; only ever seen in logs and metrics
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def error_body(error: TsugikiError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    return _body(str(error), error.type, error.param, error.code)


def error_response(error: TsugikiError) -> JSONResponse:
    """The answer to a request that raised `error`."""
    headers = {}
    if (seconds := getattr(error, "retry_after", None)) is not None:
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if received := getattr(error, "received", 0):
        headers["Range"] = f"bytes=0-{received - 1}"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def internal_error(error: Exception) -> TsugikiError:
    """What a caller learns of a bug: that there is one, and where to read about it."""
    logger.exception("unexpected %s", type(error).__name__, exc_info=error)
    return TsugikiError("internal error; the server's log has the details")


def install(app: FastAPI) -> None:
    """Let every error of `app` leave in OpenAI's shape."""
    app.add_exception_handler(TsugikiError, _on_tsugiki_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_tsugiki_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, TsugikiError):
        raise error
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "malformed")
        return error_response(InvalidRequest(f"the body is not JSON: {detail}"))
    if not place:
        hint = "send a JSON object with Content-Type: application/json"
        return error_response(InvalidRequest(f"{first['msg']}; {hint}"))
    message = f"{'.'.join(place)}: {first['msg']}"
    return error_response(InvalidRequest(message, param=place[0]))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    body = _body(f"{error.detail} ({request.method} {request.url.path})", None, None, code)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; the status is for the log."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _body(message: str, kind: str | None, param: str | None, code: str) -> dict[str, Any]:
    readable = message.encode("utf-8", "replace").decode()  # a request may hold lone surrogates
    return {
        "error": {
            "message": readable,
            "type": kind or "invalid_request_error",
            "param": param,
            "code": code,
        }
    }
