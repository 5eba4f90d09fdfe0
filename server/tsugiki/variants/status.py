"""What everybody may know about each digest in memory or on its way there.

Owns: the published record of each digest and its transitions. Written by residency.py on the engine
thread, read from any thread.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from tsugiki.variants.loader import LoadTimings

State = Literal["disk", "loading", "host", "ready", "failed"]
OnTransition = Callable[[str, str, str, str | None], None]  # digest, old and new state, reason


@dataclass(frozen=True, slots=True)
class ResidencyInfo:
    """One digest as other threads see it."""

    state: State = "disk"
    resident_bytes: int = 0  # of its own on the device
    references: int = 0
    pinned: bool = False
    last_used: float | None = None  # the clock of the residency; unix seconds in a server
    load_ms: float | None = None
    timings: LoadTimings | None = None  # the parts of load_ms
    error: str | None = None


_UNKNOWN = ResidencyInfo()


class StatusBoard:
    """The records. One that is absent says: on disk, never used."""

    def __init__(self, on_transition: OnTransition | None = None) -> None:
        self._on_transition = on_transition
        self._records: Mapping[str, ResidencyInfo] = MappingProxyType({})

    def snapshot(self) -> Mapping[str, ResidencyInfo]:
        """Immutable; safe from any thread."""
        return self._records

    def info(self, digest: str) -> ResidencyInfo:
        """The record of a digest."""
        return self._records.get(digest, _UNKNOWN)

    def publish(self, digest: str, reason: str | None = None, **changes: Any) -> None:
        """Change a record; a change of state is reported with its reason."""
        old = self.info(digest)
        new = replace(old, **changes)
        if new.state != "ready":
            new = replace(new, resident_bytes=0)
        # A copy per change: readers in other threads keep whatever mapping they took.
        self._records = MappingProxyType({**self._records, digest: new})
        if new.state != old.state and self._on_transition is not None:
            self._on_transition(digest, old.state, new.state, reason)

    def forget(self, digest: str) -> None:
        """Drop a record."""
        self._records = MappingProxyType(
            {known: info for known, info in self._records.items() if known != digest}
        )
