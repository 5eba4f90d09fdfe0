"""What every name may have meant at every moment, from the calls that were made and when.

Owns: the expected effect of each call (`Ledger`), and the versions that a request may rightly be
answered by (`History`). Pure. Does not know HTTP, tokens.

A call takes effect at some time between its sending and its answer, and a request is resolved at
some time between its sending and the first byte of its answer. So a request may be answered by
whatever its name meant when it was sent, or by the outcome of any call that overlaps with this
window; by nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.churn.plan import Operation

Meaning = frozenset[str]  # digests that may answer; empty: the name is unknown, a 404


@dataclass(frozen=True, slots=True)
class Name:
    """What the registry should hold of one name."""

    versions: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ()  # digests, the active one last
    candidate: str | None = None  # of a canary

    @property
    def meaning(self) -> Meaning:
        """The versions that may answer to the bare name."""
        found = {*self.activations[-1:], self.candidate}
        return frozenset(digest for digest in found if digest is not None)

    def answered_by(self, version: str | None) -> Meaning:
        """The versions that may answer to the bare name, or to the name with a digest."""
        return self.meaning if version is None else self.versions & {version}


def effect(name: Name, operation: Operation, digest: str | None) -> Name:
    """The name after an operation that succeeded; `digest`: of the operation's file."""
    if operation.kind == "delete":
        return Name()
    if operation.kind == "rollback":
        return replace(name, activations=name.activations[:-1], candidate=None)
    if operation.kind == "delete-version":
        return _without(name, digest)
    if digest is None or operation.kind in ("put-broken", "put-abandoned"):
        return name
    known = replace(name, versions=name.versions | {digest})
    if operation.kind == "put-inactive":
        return known
    if operation.kind == "canary":
        return replace(known, candidate=digest if operation.percent else None)
    activations = known.activations
    if activations[-1:] != (digest,):
        activations = (*activations, digest)
    return replace(known, activations=activations, candidate=None)


def _without(name: Name, digest: str | None) -> Name:
    """A version that is not the active one deleted; what it leaves twice in a row counts once."""
    kept = [d for d in name.activations if d != digest]
    return Name(
        name.versions - {digest},
        tuple(d for i, d in enumerate(kept) if i == 0 or kept[i - 1] != d),
        None if name.candidate == digest else name.candidate,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """A call: under way from `begin` to `end`, its outcome settled afterwards."""

    begin: float
    end: float
    after: Name


@dataclass(slots=True)
class History:
    """All names over time. Changes of one name do not overlap."""

    initial: Mapping[str, Name]
    changes: dict[str, list[Change]] = field(default_factory=dict)

    def record(self, name: str, change: Change) -> None:
        """A call has ended."""
        self.changes.setdefault(name, []).append(change)

    def allowed(
        self, name: str, begin: float, end: float, version: str | None = None
    ) -> frozenset[str | None]:
        """Digests that may answer a request for a name, or for a version of it, resolved within
        [begin, end]; None: a 404 may."""
        states = [self.initial.get(name, Name())]
        for change in self.changes.get(name, ()):
            if change.end < begin:
                states = [change.after]
            elif change.begin <= end:
                states.append(change.after)
        return frozenset().union(*(state.answered_by(version) or {None} for state in states))

    def settled(self, name: str, begin: float, end: float) -> Change | None:
        """The last change before the window, if no other one overlaps with it."""
        last = None
        for change in self.changes.get(name, ()):
            if change.end < begin:
                last = change
            elif change.begin <= end:
                return None
        return last


@dataclass(slots=True)
class Ledger:
    """The names as they should stand now; every call is booked when it is answered."""

    names: dict[str, Name]
    history: History

    @classmethod
    def of(cls, digests: Mapping[str, str]) -> "Ledger":
        """Names with one version each."""
        names = {name: Name(frozenset({d}), (d,)) for name, d in digests.items()}
        return cls(names, History(dict(names)))

    def expected(self, operation: Operation, digest: str | None) -> Name:
        """What the operation's name should be after it."""
        return effect(self.names.get(operation.name, Name()), operation, digest)

    def book(self, operation: Operation, digest: str | None, begin: float, end: float) -> None:
        """The operation was answered as expected."""
        after = self.expected(operation, digest)
        self.names[operation.name] = after
        self.history.record(operation.name, Change(begin, end, after))

    def rest(self) -> "Ledger":
        """The same names with an empty past, for the next round."""
        return Ledger(dict(self.names), History(dict(self.names)))


def digests_of(names: Mapping[str, Name]) -> Sequence[str]:
    """Every digest that some name has."""
    return sorted(set().union(*(name.versions for name in names.values())))
