"""A load source that moves only when a test tells it to."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from tsugiki.codecs.base import ResidentVariant, SharedPart
from tsugiki.variants.loader import LoadOutcome, LoadTimings, PackedVariant


class Part(NamedTuple):
    """Something that variants share."""

    name: str
    nbytes: int


Shared = tuple[Part, ...]


def resident(digest: str, nbytes: int, shared: tuple[SharedPart, ...] = ()) -> ResidentVariant:
    """A variant of which only the accounting matters."""
    return ResidentVariant(
        digest=digest,
        vocab_size=1,
        linears={},
        vectors={},
        embedding=None,
        lm_head_rows=None,
        nbytes=nbytes,
        shared=shared,
    )


class SteppedSource:
    """A load source that loads when told to: `sizes` gives bytes, a missing size is an error.

    Packed content is as large as the variant; `shared` gives the parts that a variant shares.
    """

    def __init__(self, sizes: dict[str, int], shared: Mapping[str, Shared] | None = None) -> None:
        self.sizes = sizes
        self.shared = shared or {}
        self.pending: list[tuple[str, PackedVariant | None]] = []
        self.done: list[LoadOutcome] = []
        self.submitted: Counter[str] = Counter()
        self.read: Counter[str] = Counter()  # submissions that found no packed content

    def submit(self, digest: str, packed: PackedVariant | None) -> None:
        assert digest not in [known for known, _ in self.pending], "one load of a digest at a time"
        self.pending.append((digest, packed))
        self.submitted[digest] += 1
        self.read[digest] += packed is None

    def finished(self) -> list[LoadOutcome]:
        done, self.done = self.done, []
        return done

    def step(self, index: int = 0) -> None:
        digest, packed = self.pending.pop(index)
        if digest not in self.sizes:
            self.done.append(LoadOutcome(digest, None, "no such file", 1.0))
            return
        variant = resident(digest, self.sizes[digest], self.shared.get(digest, ()))
        timings = LoadTimings(1000.0, 2000.0, 3000.0) if packed is None else LoadTimings(stage=3000)
        packed = packed or PackedVariant(cast(Any, digest), self.sizes[digest])
        self.done.append(LoadOutcome(digest, variant, None, 5.0, timings, packed))

    def run(self) -> None:
        while self.pending:
            self.step()
