"""What a directory must mean after a list of operations: a model of the registry in sets.

Owns: the operations, what each does to the names, and the choice of the next one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["put", "activate", "canary", "rollback", "delete", "delete version"]
PERCENTS = (5.0, 50.0, 100.0)


@dataclass(frozen=True)
class Operation:
    """One change, as it is asked for."""

    kind: Kind
    name: str
    digest: str = ""
    percent: float = 0.0
    activate: bool = True

    def to_json(self) -> dict[str, Any]:
        """For a pipe; `Operation(**fields)` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Named:
    """A name: the activations to roll back through, all versions, the canary."""

    stack: tuple[str, ...] = ()
    digests: frozenset[str] = frozenset()
    canary: tuple[str, float] | None = None

    @property
    def active(self) -> str | None:
        """What the bare name means."""
        return self.stack[-1] if self.stack else None

    def activated(self, digest: str) -> "Named":
        """A version answers everybody."""
        stack = self.stack if self.active == digest else (*self.stack, digest)
        return replace(self, stack=stack, canary=None)

    def without(self, digest: str) -> "Named":
        """A version is gone, and its canary."""
        kept = [d for d in self.stack if d != digest]
        stack = tuple(d for i, d in enumerate(kept) if i == 0 or kept[i - 1] != d)
        canary = None if self.canary and self.canary[0] == digest else self.canary
        return Named(stack, self.digests - {digest}, canary)


State = dict[str, Named]


def applied(state: Mapping[str, Named], operation: Operation) -> State:
    """The state after an operation that was allowed in it."""
    others = {name: named for name, named in state.items() if name != operation.name}
    named = _changed(state.get(operation.name, Named()), operation)
    return others | ({operation.name: named} if named.digests else {})


def _changed(named: Named, operation: Operation) -> Named:
    digest = operation.digest
    match operation.kind:
        case "put":
            named = replace(named, digests=named.digests | {digest})
            return named.activated(digest) if operation.activate else named
        case "activate":
            return named.activated(digest)
        case "canary":
            percent = operation.percent
            return replace(named, canary=(digest, percent) if percent else None)
        case "rollback":
            stack = named.stack if named.canary else named.stack[:-1]
            return replace(named, stack=stack, canary=None)
        case "delete version":
            return named.without(digest)
        case "delete":
            return Named()


def next_operation(
    state: Mapping[str, Named],
    names: Sequence[str],
    digests: Sequence[str],
    rng: random.Random,
    uploads: float = 0.5,
) -> Operation:
    """An allowed operation; `uploads` of them add something that others can change."""
    kinds: list[Kind] = ["activate", "canary", "rollback", "delete", "delete version"]
    while True:
        kind: Kind = "put" if rng.random() < uploads else rng.choice(kinds)
        for name in rng.sample(names, len(names)):
            named = state.get(name, Named())
            if kind == "put":
                return Operation(kind, name, rng.choice(digests), activate=rng.random() < 0.7)
            if operation := _allowed(kind, name, named, rng):
                return operation


def _allowed(kind: Kind, name: str, named: Named, rng: random.Random) -> Operation | None:
    """An operation of this kind, if the name is in a state for it."""
    others = sorted(named.digests - {named.active})
    if kind == "canary" and named.canary and rng.random() < 0.3:
        return Operation(kind, name, named.canary[0], 0.0)
    if kind == "canary" and named.active and others:
        return Operation(kind, name, rng.choice(others), rng.choice(PERCENTS))
    if kind in ("activate", "delete version") and others:
        return Operation(kind, name, rng.choice(others))
    rollback = kind == "rollback" and (named.canary or len(named.stack) > 1)
    if rollback or (kind == "delete" and named.digests):
        return Operation(kind, name)
    return None


def shown(state: Mapping[str, Named]) -> dict[str, Any]:
    """What a listing can show of a state: not the stack."""
    return {n: (named.active, named.digests, named.canary) for n, named in state.items()}
