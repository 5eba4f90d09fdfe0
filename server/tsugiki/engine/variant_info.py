"""What the API shows of variants: the list of models, versions, their history, their events.

Owns: those records. Plain data, no torch. Who makes them is in variant_view.py and
variant_events.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

VariantState = Literal["disk", "loading", "host", "ready", "failed"]
VariantEventKind = Literal[
    "uploaded",  # changes of the registry ...
    "activated",
    "rolled_back",
    "canary",
    "deleted",
    "file_added",
    "file_changed",
    "file_removed",
    "file_failed",
    "loading",  # ... and of residency
    "host",
    "ready",
    "evicted",
    "unloaded",
    "failed",
]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The base (parent None) or a variant, as /v1/models shows it."""

    id: str
    parent: str | None
    digest: str | None
    codec: str | None
    bytes: int
    state: VariantState
    created: int  # unix seconds
    max_model_len: int


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """Milliseconds of each part of a variant's last load."""

    read: float  # from disk
    verify: float  # digest and every value
    stage: float  # into the form that the kernels read


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """One version of a variant, as /v1/variants shows it."""

    name: str
    digest: str
    codec: str
    bytes: int  # of the file
    ratio: float  # honest: bf16 bytes of the changed tensors / file bytes
    state: VariantState
    active: bool  # the version that the bare name means
    pinned: bool
    references: int
    resident_bytes: int
    last_used: float | None  # unix seconds
    load_ms: float | None
    error: str | None = None
    coverage: Mapping[str, Any] = field(default_factory=dict)
    timings: LoadTimes | None = None
    canary_percent: float = 0.0  # share of the name's users that get this version instead
    signed_by: str | None = None  # id of the trusted key


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that was done to a name."""

    digest: str
    at: float  # unix seconds
    action: str  # upload, file, activate, canary, rollback, delete, file removed
    percent: float | None = None  # of a canary; 0 ended it


@dataclass(frozen=True, slots=True)
class VariantEvent:
    """One change of one version, as GET /v1/variants/events shows it."""

    sequence: int  # grows by one per event, and from one run of the server to the next
    at: float  # unix seconds
    name: str
    digest: str
    kind: VariantEventKind
    detail: str | None = None  # why, or how much
