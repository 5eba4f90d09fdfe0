"""The one exception tree of the server, and what each error means to a caller.

TsugikiError
  + UserError                      the caller can mend it (exit code 1, HTTP 4xx)
    + InvalidRequest        400
      + ContextTooLong      400
      + Unsupported         400    understood, but this server does not do it
    + Unauthorized          401
    + Forbidden             403
    + ModelNotFound         404
    + Conflict              409
      + WrongOffset         409    an upload goes on somewhere else; `received` says where
    + PayloadTooLarge       413
    + InvalidArtifact       422    a variant file that must not be served
      + WrongBase           422
      + CorruptArtifact     422
    + ProbeFailed           422    a variant that answers its own probe otherwise
    + UnsupportedModel      422    a base directory of a family we do not serve
    + CompressionRefused    422    a fine-tune that the chosen codec cannot carry
    + ConfigError           400    flags, TOML, environment
  + Overloaded              429    with retry_after seconds
  + Unavailable             503    draining, or the engine is not running
  + StorageFull             507    the disk holds no more variants
  + EngineFailure           500    a step raised; the request is over

Every class has an HTTP `status`, a machine-readable `code` and OpenAI's `type`; `api.errors` is one
handler over them, and the command line prints `str(error)` on one line.
"""


class TsugikiError(Exception):
    """Base of every error this project raises on purpose."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UserError(TsugikiError):
    """Something the caller can mend; the message names the value and the remedy."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class InvalidRequest(UserError):
    """A request with a missing, malformed or out-of-range field."""


class ContextTooLong(InvalidRequest):
    """Prompt and max_tokens do not fit the model's context."""

    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """A field that is understood but that this server does not implement."""

    code = "unsupported"


class Unauthorized(UserError):
    """No key, or a key that is not known."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(UserError):
    """A known key without the right to do this."""

    status = 403
    code = "insufficient_permissions"
    type = "permission_error"


class ModelNotFound(UserError):
    """No base, variant or version of this name (or not for this key)."""

    status = 404
    code = "model_not_found"

    def __init__(self, message: str, *, param: str | None = "model") -> None:
        super().__init__(message, param=param)


class Conflict(UserError):
    """The named thing exists already, or is in a state that forbids the call."""

    status = 409
    code = "conflict"


class WrongOffset(Conflict):
    """A chunk of an upload that does not begin where the bytes that are here end."""

    code = "wrong_offset"

    def __init__(self, message: str, *, received: int) -> None:
        super().__init__(message)
        self.received = received


class PayloadTooLarge(UserError):
    """A body over the configured limit."""

    status = 413
    code = "payload_too_large"


class InvalidArtifact(UserError):
    """A variant file that must not be served: unknown format or codec, wrong shapes, NaN."""

    status = 422
    code = "invalid_variant"


class WrongBase(InvalidArtifact):
    """A variant made from another base than the one resident."""

    code = "wrong_base"


class CorruptArtifact(InvalidArtifact):
    """A truncated or altered file."""

    code = "corrupt_variant"


class ProbeFailed(UserError):
    """A variant that does not answer its own probe here as its maker said."""

    status = 422
    code = "probe_failed"


class UnsupportedModel(UserError):
    """A model directory of an unsupported family, or an incomplete one."""

    status = 422
    code = "unsupported_model"


class CompressionRefused(UserError):
    """A fine-tune that the chosen codec cannot carry; the message lists what and why."""

    status = 422
    code = "compression_refused"


class ConfigError(UserError):
    """A flag, TOML key or environment variable with a bad value."""

    code = "invalid_config"


class Overloaded(TsugikiError):
    """The queue is full; try again after `retry_after` seconds (computed from queue and rate)."""

    status = 429
    code = "overloaded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(TsugikiError):
    """Draining or not running; another server, or this one later, will answer."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageFull(TsugikiError):
    """No room on disk for an upload; nothing of it was kept."""

    status = 507
    code = "insufficient_storage"


class EngineFailure(TsugikiError):
    """A step raised while this request was in it."""

    code = "engine_failure"
