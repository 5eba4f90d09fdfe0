"""Who may do what: API keys, their roles, their variants.

Owns: authentication (a middleware, so that no route can forget it) and the two checks that routes
ask for. Keys are kept as sha256 only and compared in constant time. Does not know routes.
"""

import fnmatch
import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tsugiki.api.errors import error_response
from tsugiki.api.record import record_of
from tsugiki.api.services import Services, ServicesDep
from tsugiki.engine.client import EngineClient
from tsugiki.engine.request import VariantRef
from tsugiki.errors import Forbidden, ModelNotFound, Unauthorized, Unavailable
from tsugiki.keys import ApiKey

_STATE = "tsugiki.key"
_OPEN_PATHS = frozenset({"/health"})


class AuthMiddleware:
    """401 for every route but /health without a known key; nothing when no keys are configured."""

    def __init__(self, app: ASGIApp, keys: tuple[ApiKey, ...]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and self._keys and scope["path"] not in _OPEN_PATHS:
            try:
                scope[_STATE] = authenticate(Headers(scope=scope).get("authorization"), self._keys)
            except Unauthorized as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def authenticate(authorization: str | None, keys: tuple[ApiKey, ...]) -> ApiKey:
    """The key of an Authorization header.

    Raises:
        Unauthorized: no Bearer token, or one that is not known.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("no API key; send the header Authorization: Bearer KEY")
    digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).hexdigest()
    found = None
    for key in keys:  # all of them, so that the time taken says nothing
        if hmac.compare_digest(key.sha256, digest):
            found = key
    if found is None:
        raise Unauthorized("this API key is not known here")
    return found


class Access:
    """What the caller of one request may see and do."""

    def __init__(self, key: ApiKey | None, engine: EngineClient) -> None:
        self._key = key
        self._engine = engine

    @property
    def weight(self) -> float:
        """The caller's share of the engine under contention."""
        return 1.0 if self._key is None else self._key.weight

    def sees(self, name: str) -> bool:
        """Whether a model of this name exists for the caller."""
        if self._key is None:
            return True
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._key.variants)

    def resolve(self, model: str, user: str | None = None) -> VariantRef:
        """The version that `model` means to this `user` of the caller.

        Raises:
            ModelNotFound: unknown, or not for this caller; to a key both look the same.
        """
        try:
            variant = self._engine.resolve(model, user)
        except ModelNotFound:
            if self._key is None:
                raise
            raise model_not_found(model) from None
        if not self.sees(variant.name):
            raise model_not_found(model)
        return variant

    def require_sight(self, name: str) -> None:
        """Raises ModelNotFound for a name outside the caller's variants."""
        if not self.sees(name):
            raise model_not_found(name)

    def tenant(self, variant: VariantRef) -> str:
        """Whose share of the engine is used: the key's id; without keys, the variant."""
        return variant.name if self._key is None else self._key.id


def model_not_found(name: str) -> ModelNotFound:
    """The 404 of OpenAI."""
    return ModelNotFound(f"The model {name!r} does not exist; GET /v1/models lists those that do")


async def _access(request: Request, services: ServicesDep) -> Access:
    key: ApiKey | None = request.scope.get(_STATE)
    if key is not None:
        record_of(request).tenant = key.id
    if request.method != "GET":
        _require_running(services)
    return Access(key, services.engine)


def _require_running(services: Services) -> None:
    if services.engine.draining():
        raise Unavailable(
            "this server is shutting down; ask another one",
            retry_after=services.config.drain_seconds,
        )
    if not services.engine.alive():
        raise Unavailable("the engine is not running")


AccessDep = Annotated[Access, Depends(_access)]


async def require_management(request: Request, services: ServicesDep, access: AccessDep) -> None:
    """Refuse callers who may not change variants.

    Raises:
        Forbidden: a user's key; or no keys at all on an address that others can reach.
    """
    key: ApiKey | None = request.scope.get(_STATE)
    if key is not None and key.role != "admin":
        raise Forbidden(f"key {key.id!r} has the role user; variant management needs an admin key")
    if key is None and not services.config.loopback:
        raise Forbidden(
            "variant management is off: this server listens on a public address without keys; "
            "start it with --api-key-file"
        )


ManagementDep = Depends(require_management)
