"""API keys as they are configured: one per tenant.

Owns: `ApiKey` and reading it from TOML tables. Does not know requests.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from tsugiki.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One tenant. The key itself is never stored, only its sha256 (64 hex digits)."""

    id: str
    sha256: str
    role: Literal["user", "admin"] = "user"
    weight: float = 1.0  # share of the engine under contention
    variants: tuple[str, ...] = ("*",)  # names it sees and reaches; "*" is all, the base included

    def __post_init__(self) -> None:
        if not self.id:
            raise ConfigError("[[key]] needs a non-empty id")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(
                f"[[key]] {self.id!r}: sha256 must be 64 lower-case hex digits; "
                "print them with: printf %s KEY | sha256sum"
            )
        if self.role not in ("user", "admin"):
            raise ConfigError(f"[[key]] {self.id!r}: role {self.role!r} is neither user nor admin")
        if not self.weight > 0:
            raise ConfigError(f"[[key]] {self.id!r}: weight {self.weight!r} must be above 0")


def parse_keys(tables: Any, path: object) -> tuple[ApiKey, ...]:
    """The `[[key]]` tables of a TOML file; `path` names it in errors.

    Raises:
        ConfigError: a table that is no key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: key must be a list of tables, each written [[key]]")
    return tuple(_key(table, path) for table in tables)


def _key(table: dict[str, Any], path: object) -> ApiKey:
    names = table.get("variants", ["*"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: variants of a [[key]] must be a list of names, such as ['*']")
    try:
        return ApiKey(**{**table, "variants": tuple(names)})
    except TypeError as error:
        raise ConfigError(
            f"{path}: a [[key]] table has id, sha256, role, weight, variants; {error}"
        ) from error
