"""What a version of a variant is, and how names are written.

Owns the value types of the registry and the grammar of names. Does not know disks.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tsugiki.codecs.base import Layout
from tsugiki.codecs.metadata import Header
from tsugiki.errors import InvalidRequest, ModelNotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST_PREFIX = re.compile(r"sha256:[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """What a variant file must fit: the resident base."""

    fingerprint: str  # "sha256:<64 hex>"
    layout: Layout
    vocab_size: int
    accept_derived: str | None = (
        None  # fingerprint of the base that a compressed base is derived from
    )


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version under one name. With `error` set it is known but never served."""

    name: str
    digest: str  # "sha256:<64 hex>"; "" when the file is too broken to have one
    path: Path
    codec: str  # "" when unreadable
    bytes: int  # of the file
    ratio: float  # bf16 bytes of the tensors the file changes / bytes of the file
    created: int  # unix seconds
    active: bool  # the version that the bare name means
    error: str | None
    header: Header | None
    canary_percent: float = 0.0  # of the users, answered by this version beside the active one
    signed_by: str | None = None  # id of the trusted key


def check_name(name: str) -> str:
    """The name, if it is one: it becomes part of a file name.

    Raises:
        InvalidRequest: otherwise.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} is no variant name: 1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter "
            "or a digit",
            param="name",
        )
    return name


def split_model(model: str) -> tuple[str, str | None]:
    """`name` or `name@sha256:<at least 12 hex>` -> (name, digest prefix or None).

    Raises:
        ModelNotFound: a digest of any other form, which no version can have.
    """
    name, at, prefix = model.partition("@")
    if not at:
        return name, None
    if not DIGEST_PREFIX.fullmatch(prefix):
        raise ModelNotFound(
            f"{model!r} names no version: write NAME@sha256: and 12 to 64 lowercase hex digits"
        )
    return name, prefix
