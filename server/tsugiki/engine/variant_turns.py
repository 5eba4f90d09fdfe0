"""Whose variants are fetched, stay, or give up their room, while more are wanted than fit.

Owns: the one policy for that, and what it is decided by: which requests wait for which variant and
since when, and which run. Lives on the engine thread. Does not know seats, blocks and tenants
(scheduler.py), nor how variants come and go (residency.py does what is decided here).

1. Ahead: the variants of the oldest waiting requests are fetched as soon as these arrive, whether
   or not there is a seat for them; `load_ahead` variants at a time.
2. Together: a variant on the device for which anybody waits is not evicted. What was loaded for a
   request is still there when it runs, and the requests of one variant run before it is swapped.
3. In turn: when a loaded variant finds no room and somebody has waited for a cold one longer than
   `patience`, a variant yields: of those that have been on the device for as long and for which
   nobody has waited longer, the one whose running requests end soonest. It admits nobody until it
   has made room; when that was not enough, another one yields beside it.

Hence, and tested: a request whose variant is on the device and does not yield may run at once, so
that cold variants hold nobody up. Nothing in use is evicted. What was waited for longest never
yields and is next in line, so that nobody waits for ever: only for those who came before, a
`patience` or two, the running requests of those that yield, and the load. And no variant that is
still wanted is swapped out within `patience` of its load: however many are hot, the time goes into
requests, not into loads.
"""

import math
from collections import defaultdict
from collections.abc import Callable

from tsugiki.engine.request import Request
from tsugiki.variants.loader import LoadOutcome
from tsugiki.variants.residency import Residency


class VariantTurns:
    """See above. `wait`, `run` and `leave` follow every request; `advance` decides, once a step."""

    def __init__(
        self,
        variants: Residency,
        clock: Callable[[], float],
        *,
        load_ahead: int = 4,
        patience: float = 1.0,
    ) -> None:
        """`clock` and `patience` in seconds."""
        self.num_cold = 0  # requests that wait for a variant that is not on the device
        self._variants = variants
        self._clock = clock
        self._load_ahead = load_ahead
        self._patience = patience
        self._waiting: defaultdict[str, dict[str, float]] = defaultdict(dict)  # oldest first
        self._running: defaultdict[str, dict[str, Request]] = defaultdict(dict)
        self._yielding: set[str] = set()
        self._loaded_at: dict[str, float] = {}  # of those on the device

    def wait(self, digest: str, who: str) -> None:
        """Somebody (a request, or whoever asked for a load) waits for a variant from now on."""
        self._waiting[digest].setdefault(who, self._clock())

    def run(self, request: Request) -> None:
        """A request of a variant was given a seat."""
        digest = str(request.variant.digest)
        self.leave(digest, request.request_id)
        self._running[digest][request.request_id] = request

    def leave(self, digest: str, who: str) -> None:
        """Somebody waits or runs no longer."""
        for users in (self._waiting, self._running):
            if digest in users:
                users[digest].pop(who, None)
                if not users[digest]:
                    del users[digest]

    def may_run(self, digest: str) -> bool:
        """Whether requests of this variant can be given seats in this step."""
        return digest not in self._yielding and self._variants.get(digest) is not None

    def advance(self) -> list[LoadOutcome]:
        """Begin loads, take in what was loaded, choose who yields; the loads that ended."""
        self._variants.abandon(self._waiting.keys())
        wanted = sorted(self._waiting, key=self._since)
        on_device = set(self._variants.on_device())
        for digest in [digest for digest in wanted if digest not in on_device][: self._load_ahead]:
            self._variants.request(digest)
        outcomes = self._variants.poll(keep=self._waiting.keys() - self._yielding)
        on_device = set(self._variants.on_device())
        now = self._clock()
        self._loaded_at = {digest: self._loaded_at.get(digest, now) for digest in on_device}
        cold = [digest for digest in wanted if digest not in on_device]
        self.num_cold = sum(len(self._waiting[digest]) for digest in cold)
        self._yielding &= on_device
        if not cold or not self._crowded_out(cold[0]):
            self._yielding.clear()
        elif not any(digest in self._running for digest in self._yielding):
            self._let_one_yield(self._since(cold[0]))
        return outcomes

    def _crowded_out(self, digest: str) -> bool:
        waited = self._clock() - self._since(digest)
        return waited > self._patience and bool(self._variants.without_room())

    def _let_one_yield(self, longest: float) -> None:
        """One more, since those that yield are idle and do not make room enough."""
        candidates = [
            digest
            for digest in self._variants.on_device()
            if digest not in self._yielding
            and not self._variants.pinned(digest)
            and self._since(digest) > longest
            and self._clock() - self._loaded_at[digest] > self._patience
        ]
        if candidates:
            self._yielding.add(min(candidates, key=self._tokens_until_idle))

    def _since(self, digest: str) -> float:
        """When the first of those who wait for it came; infinite when nobody does."""
        return next(iter(self._waiting[digest].values())) if digest in self._waiting else math.inf

    def _tokens_until_idle(self, digest: str) -> int:
        running = self._running[digest].values() if digest in self._running else ()
        return max((r.params.max_tokens - len(r.output_token_ids) for r in running), default=0)
