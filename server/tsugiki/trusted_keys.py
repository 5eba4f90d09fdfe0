"""Keys whose signature makes a variant trusted, as they are configured.

Owns: `TrustedKey` and reading it from TOML. Does not know signatures (variants/signature.py).
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from tsugiki.errors import ConfigError

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A TOML table [[trusted_key]]: who signs, and the public half of the key."""

    id: str
    ed25519: str  # base64 of the raw 32 bytes

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("[[trusted_key]] needs a non-empty id")
        try:
            length = len(self.raw)
        except (binascii.Error, ValueError):
            length = 0
        if length != KEY_BYTES:
            raise ConfigError(
                f"[[trusted_key]] {self.id!r}: ed25519 must be base64 of the {KEY_BYTES} raw bytes "
                "of a public key; print it with: "
                "openssl pkey -in KEY.pem -pubout -outform DER | tail -c 32 | base64"
            )

    @property
    def raw(self) -> bytes:
        """The public key."""
        return base64.b64decode(self.ed25519, validate=True)


def parse_trusted_keys(tables: Any, path: object) -> tuple[TrustedKey, ...]:
    """The `[[trusted_key]]` tables of a TOML file; `path` names it in errors.

    Raises:
        ConfigError: a table that is no key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: trusted_key must be a list of tables: [[trusted_key]]")
    try:
        return tuple(TrustedKey(**table) for table in tables)
    except TypeError as error:
        raise ConfigError(f"{path}: a [[trusted_key]] has id and ed25519; {error}") from error
