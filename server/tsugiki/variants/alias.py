"""The record of one name: its versions, which of them answers, and how that came about.

Owns the values of a record and every change of them, as pure functions: a change returns the record
after it. Does not know files, nor how a record is stored (store.py).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

HISTORY = 100  # entries of the history, and activations to roll back through, per name
OPERATORS_FILE = "file"  # an activation in records of 0.1.0: whatever the operator's file held

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Activation = Annotated[str, StringConstraints(pattern=r"^(file|sha256:[0-9a-f]{64})$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{86}==$")]  # 64 bytes
Percent = Annotated[float, Field(ge=0, le=100)]
Action = Literal["upload", "file", "activate", "canary", "rollback", "delete", "file removed"]
Stamp = tuple[int, ...]  # tells one state of an operator's file from another (watch.py)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version of a name; its file is immutable."""

    digest: Digest
    created: int  # unix seconds
    source: Literal["upload", "file"] = "upload"  # what came as a file goes with the file
    signature: Signature | None = None  # over the digest; checked again at every start


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that answers a share of the users, beside the active one."""

    digest: Digest
    percent: Percent


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """The operator's file of this name as it was last taken in."""

    digest: Digest
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that happened to a name."""

    digest: Digest
    at: int  # unix seconds
    action: Action
    percent: Percent | None = None  # of a canary; 0 ended it


@dataclass(frozen=True, slots=True)
class Alias:
    """What a name means. `activations` is a stack: the last one answers, rollback pops it."""

    name: str
    versions: tuple[StoredVersion, ...]
    activations: tuple[Activation, ...]
    deleted: bool = False  # the deletion is decided but not all of it was done
    canary: Canary | None = None
    placed: PlacedFile | None = None
    history: tuple[HistoryEntry, ...] = ()

    @property
    def active(self) -> str | None:
        """The digest that the bare name means."""
        return self.activations[-1] if self.activations else None

    def version(self, digest: str) -> StoredVersion | None:
        """The version of this digest."""
        return next((v for v in self.versions if v.digest == digest), None)

    def with_version(self, version: StoredVersion, at: int) -> "Alias":
        """A version added. One that is known keeps its time, and gains what it lacked: a signature,
        or an upload of its own, so that it no longer goes with the operator's file."""
        known = self.version(version.digest)
        if known is None:
            added = replace(self, versions=(*self.versions, version))
            return added._noted(version.digest, at, version.source)
        better = replace(
            known,
            source="upload" if version.source == "upload" else known.source,
            signature=version.signature or known.signature,
        )
        return replace(self, versions=tuple(better if v is known else v for v in self.versions))

    def activated(self, digest: str, at: int) -> "Alias":
        """This version answers all users; ends a canary."""
        if self.active == digest and self.canary is None:
            return self
        activations = self.activations
        if self.active != digest:
            activations = (*activations, digest)[-HISTORY:]
        changed = replace(self, activations=activations, canary=None)
        return changed._noted(digest, at, "activate")

    def with_canary(self, digest: str, percent: float, at: int) -> "Alias":
        """This version answers `percent` of the users; 0 ends the canary."""
        canary = Canary(digest, percent) if percent else None
        if canary == self.canary:
            return self
        return replace(self, canary=canary)._noted(digest, at, "canary", percent)

    def rolled_back(self, at: int) -> "Alias":
        """The last change of who answers undone: a canary ends, else the activation before counts.

        Needs a canary or two activations.
        """
        if self.canary is not None:
            return replace(self, canary=None)._noted(self.canary.digest, at, "rollback")
        earlier = self.activations[:-1]
        return replace(self, activations=earlier)._noted(earlier[-1], at, "rollback")

    def without_version(self, digest: str, at: int, action: Action = "delete") -> "Alias":
        """A version forgotten. When it was the active one, nothing answers from now on: the
        version before it was replaced for a reason."""
        activations = () if self.active == digest else _without(self.activations, digest)
        canary = None if self.canary and self.canary.digest == digest else self.canary
        versions = tuple(v for v in self.versions if v.digest != digest)
        changed = replace(self, versions=versions, activations=activations, canary=canary)
        return changed._noted(digest, at, action)

    def with_placed(
        self, version: StoredVersion, stamp: Stamp, at: int, *, takes_over: bool
    ) -> "Alias":
        """The operator's file taken in, as a version; other content than before takes over."""
        changed = replace(
            self.with_version(version, at), placed=PlacedFile(version.digest, stamp)
        )._with_digest_for_file(version.digest)
        return changed.activated(version.digest, at) if takes_over else changed

    def without_placed(self, at: int) -> "Alias":
        """The operator's file is gone, and with it every version that came that way."""
        changed = replace(self, placed=None)._with_digest_for_file(None)
        for version in self.versions:
            if version.source == "file":
                changed = changed.without_version(version.digest, at, "file removed")
        return changed

    def _with_digest_for_file(self, digest: str | None) -> "Alias":
        """Activations of "file" (records of 0.1.0) turned into the digest that is meant."""
        if OPERATORS_FILE not in self.activations:
            return self
        if digest is None:
            gone = self.active == OPERATORS_FILE
            activations = () if gone else _without(self.activations, OPERATORS_FILE)
        else:
            activations = tuple(digest if a == OPERATORS_FILE else a for a in self.activations)
        return replace(self, activations=activations)

    def _noted(self, digest: str, at: int, action: Action, percent: float | None = None) -> "Alias":
        entry = HistoryEntry(digest, at, action, percent)
        return replace(self, history=(*self.history, entry)[-HISTORY:])


def _without(activations: tuple[str, ...], digest: str) -> tuple[str, ...]:
    """The stack without a digest, and without the repetitions that this leaves."""
    kept = [a for a in activations if a != digest]
    return tuple(a for i, a in enumerate(kept) if i == 0 or kept[i - 1] != a)
