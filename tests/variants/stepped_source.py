"""A load source that moves only when a test tells it to."""

from collections import Counter

from tsugiki.codecs.base import ResidentVariant
from tsugiki.variants.loader import LoadOutcome, PackedVariant


def resident(digest: str, nbytes: int) -> ResidentVariant:
    """A variant of which only the accounting matters."""
    return ResidentVariant(
        name=digest,
        digest=digest,
        vocab_size=1,
        linears={},
        vectors={},
        embedding=None,
        lm_head_rows=None,
        nbytes=nbytes,
    )


class SteppedSource:
    """A load source that loads when told to: `sizes` gives bytes, a missing size is an error."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.pending: list[str] = []
        self.done: list[LoadOutcome] = []
        self.submitted: Counter[str] = Counter()

    def submit(self, digest: str, packed: PackedVariant | None) -> None:
        assert digest not in self.pending, "one load of a digest at a time"
        self.pending.append(digest)
        self.submitted[digest] += 1

    def finished(self) -> list[LoadOutcome]:
        done, self.done = self.done, []
        return done

    def step(self, index: int = 0) -> None:
        digest = self.pending.pop(index)
        if digest in self.sizes:
            variant = resident(digest, self.sizes[digest])
            self.done.append(LoadOutcome(digest, variant, None, 5.0))
        else:
            self.done.append(LoadOutcome(digest, None, "no such file", 1.0))

    def run(self) -> None:
        while self.pending:
            self.step()
