"""One memory tier: what is in it, how many bytes that takes, who has not been used for longest.

Owns: byte accounting in which a part that several items share counts once, parts that stay when
their last item has left, the order of use, the counters of hits, misses and evictions. Does not
know what it holds beyond sizes, nor loads, pins and references (residency.py).
"""

from collections import OrderedDict
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tsugiki.codecs.base import SharedPart


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int:
        """Bytes that are its own."""

    @property
    def shared(self) -> tuple[SharedPart, ...]:
        """The parts that whoever has an equal one holds too."""


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True, slots=True)
class TierStats:
    """A tier now; counters are cumulative since start."""

    name: str  # "host" or "device"
    budget_bytes: int
    bytes: int  # all that counts against the budget
    shared_bytes: int  # of `bytes`: parts that are held once for several variants, idle ones too
    variants: int
    hits: int
    misses: int
    evictions: int


@dataclass(slots=True)
class _Books:
    """The bytes of a set of items: own ones add up, shared ones count while anybody holds them."""

    own: int = 0
    shared: int = 0
    holders: dict[SharedPart, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.own + self.shared

    def add(self, item: Sized) -> None:
        self.own += item.nbytes
        for part in item.shared:
            count = self.holders.get(part, 0)
            self.holders[part] = count + 1
            self.shared += 0 if count else part.nbytes

    def remove(self, item: Sized) -> None:
        self.own -= item.nbytes
        for part in item.shared:
            self.holders[part] -= 1
            if not self.holders[part]:
                del self.holders[part]
                self.shared -= part.nbytes

    def __copy__(self) -> "_Books":
        return _Books(self.own, self.shared, dict(self.holders))


@dataclass(slots=True)
class _Idle:
    """Shared parts that no item holds any more, the first that became idle first."""

    limit: int  # bytes
    bytes: int = 0
    parts: OrderedDict[SharedPart, None] = field(default_factory=OrderedDict)

    def add(self, part: SharedPart) -> None:
        self.parts[part] = None
        self.bytes += part.nbytes

    def take(self, part: SharedPart) -> None:
        if part in self.parts:
            del self.parts[part]
            self.bytes -= part.nbytes

    def shrink(self, room: int) -> None:
        while self.bytes > min(self.limit, room):
            self.take(next(iter(self.parts)))


class Tier(Generic[T]):
    """Items by digest under a byte budget, which whoever calls `put` keeps with `victims`.

    A shared part whose last item has left stays, idle, for the next item that wants it: in up
    to `idle_bytes` of what the items leave free, the part that became idle first going first.
    """

    def __init__(self, name: str, budget_bytes: int, *, idle_bytes: int = 0) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.hits = self.misses = self.evictions = 0
        self._items: OrderedDict[str, T] = OrderedDict()  # oldest use first
        self._books = _Books()
        self._idle = _Idle(idle_bytes)

    @property
    def bytes(self) -> int:
        """What is in it, shared parts once; never above the budget."""
        return self._books.total + self._idle.bytes

    def __contains__(self, digest: str) -> bool:
        return digest in self._items

    def use(self, digest: str) -> T | None:
        """The item, now the most recently used."""
        item = self._items.get(digest)
        if item is not None:
            self._items.move_to_end(digest)
        return item

    def oldest_first(self) -> list[str]:
        """All digests in the order of their last use."""
        return list(self._items)

    def beside(self, item: T, others: Iterable[str]) -> int:
        """Bytes that this item and those others of the tier would take together."""
        books = _Books()
        books.add(item)
        for digest in others:
            if digest in self._items:
                books.add(self._items[digest])
        return books.total

    def victims(self, item: T, candidates: Iterable[str]) -> list[str] | None:
        """The first of `candidates` whose removal makes room for `item`; None: all do not.

        What counts is what really becomes free: a shared part goes with its last holder, and not
        at all when `item` holds it too. Idle parts make room by themselves.
        """
        after = copy(self._books)
        after.add(item)
        chosen = []
        for digest in candidates:
            if after.total <= self.budget_bytes:
                break
            after.remove(self._items[digest])
            chosen.append(digest)
        return chosen if after.total <= self.budget_bytes else None

    def put(self, digest: str, item: T) -> None:
        """Hold an item that was not held."""
        self._items[digest] = item
        self._books.add(item)
        for part in item.shared:
            self._idle.take(part)
        self._idle.shrink(self.budget_bytes - self._books.total)

    def drop(self, digest: str) -> int:
        """Hold it no longer; returns the bytes that this frees, 0 when it was not held."""
        item = self._items.pop(digest, None)
        before = self.bytes
        if item is not None:
            self._books.remove(item)
            for part in item.shared:
                if part not in self._books.holders:
                    self._idle.add(part)
            self._idle.shrink(self.budget_bytes - self._books.total)
        return before - self.bytes

    def evict(self, digest: str) -> None:
        """Drop to make room; counted."""
        self.drop(digest)
        self.evictions += 1

    def count(self, hit: bool) -> None:
        """Somebody looked for an item."""
        if hit:
            self.hits += 1
        else:
            self.misses += 1

    def stats(self) -> TierStats:
        """Any thread may ask: every number is read by itself."""
        return TierStats(
            name=self.name,
            budget_bytes=self.budget_bytes,
            bytes=self.bytes,
            shared_bytes=self._books.shared + self._idle.bytes,
            variants=len(self._items),
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
        )
