"""What calls answer, and the options of an upload.

Owns: the result types. Does not know HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said. `variant` is NAME@sha256:..., the exact version that answered."""

    text: str
    finish_reason: str | None
    usage: Mapping[str, Any]
    variant: str | None
    request_id: str | None
    raw: Mapping[str, Any]  # all choices, log-probabilities, ids


@dataclass(frozen=True, slots=True)
class Model:
    """The base (parent None) or a variant."""

    id: str
    parent: str | None
    digest: str | None
    codec: str | None
    bytes: int
    state: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One version of a variant."""

    name: str
    digest: str
    codec: str
    bytes: int
    ratio: float
    state: str
    active: bool
    pinned: bool
    references: int
    resident_bytes: int
    last_used: float | None
    load_ms: float | None
    error: str | None = None
    timings: Mapping[str, float] | None = None  # read, verify, stage: the parts of load_ms
    canary_percent: float = 0.0
    signed_by: str | None = None  # id of the trusted key


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that was done to a variant."""

    digest: str
    at: float  # unix seconds
    action: str
    percent: float | None = None  # of a canary


@dataclass(frozen=True, slots=True)
class VariantEvent:
    """One change of one version. `events(after=sequence)` goes on behind it."""

    sequence: int
    at: float  # unix seconds
    name: str
    digest: str
    kind: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What an upload says beside the file."""

    pin: bool = False
    activate: bool = True
    if_absent: bool = False  # refuse when the name exists
    signature: str | None = None  # base64, ed25519 over the file's digest string


Pushed = tuple[Variant, bool]  # the version and whether it is new
