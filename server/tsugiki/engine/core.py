"""The step loop's body: schedule, run, book, report; and what happens when a step goes wrong.

Owns: the references that running requests hold on variants, and the containment of failures: one
request's or one variant's fault ends that request or that variant's requests, never the others.
Lives on the engine thread. Does not know threads, text or clients (local.py), nor which variant
has its turn (variant_turns.py).
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tsugiki.codecs.base import ResidentVariant
from tsugiki.engine.model_runner import ChunkResult, ModelRunner
from tsugiki.engine.request import FinishReason, Request
from tsugiki.engine.schedule import Chunk
from tsugiki.engine.scheduler import Scheduler
from tsugiki.engine.step_event import StepEvent, advanced, ended
from tsugiki.engine.variant_turns import VariantTurns
from tsugiki.errors import Conflict, TsugikiError
from tsugiki.variants.loader import LoadOutcome
from tsugiki.variants.residency import Residency
from tsugiki_kernels.variant_room import VariantRoom

logger = logging.getLogger(__name__)

_LOAD = "load"  # who waits for a variant when it is not a request


@dataclass(slots=True)
class Counters:
    """Cumulative since start, but for what is said of the last. Other threads may read them."""

    steps: int = 0
    step_seconds: float = 0.0
    last_step_seconds: float = 0.0
    last_batch_rows: int = 0


OnLoaded = Callable[[LoadOutcome], None]


class EngineCore:
    """One step at a time. Every request that `add` took gets exactly one event with a reason."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        variants: Residency,
        clock: Callable[[], float] = time.monotonic,
        room: VariantRoom | None = None,
    ) -> None:
        """`room`: the buffer in which variants lie; None: each has memory of its own."""
        self.scheduler = scheduler
        self.counters = Counters()
        self._runner = runner
        self.variants = variants
        self.room = room
        self._clock = clock
        self._turns = VariantTurns(variants, lambda: self._clock())
        self._held: dict[str, str] = {}  # running request -> the digest it retains
        self._load_waiters: defaultdict[str, list[OnLoaded]] = defaultdict(list)
        self._events: list[StepEvent] = []

    @property
    def num_loading(self) -> int:
        """Requests that wait for their variant."""
        return self._turns.num_cold

    def add(self, request: Request) -> None:
        """Take a request; one that cannot fit ends at once."""
        try:
            self.scheduler.add(request)
        except TsugikiError as error:
            self._events.append(ended(request, FinishReason.ERROR, str(error)))
            return
        if request.variant.digest is not None:
            self.variants.look_up(request.variant.digest)
            self._wait(request)

    def abort(self, request_id: str) -> None:
        """End a request on its client's wish; nothing happens when it has ended."""
        request = self.scheduler.abort(request_id)
        if request is not None:
            self._release(request)
            self._events.append(ended(request, FinishReason.ABORT))

    def load(self, digest: str, on_loaded: OnLoaded) -> None:
        """Bring a variant into memory, an earlier failure forgiven; tells `on_loaded` the end."""
        if (variant := self.variants.get(digest)) is not None:
            on_loaded(LoadOutcome(digest, variant))
            return
        self._load_waiters[digest].append(on_loaded)
        self._turns.wait(digest, _LOAD)
        self.variants.request(digest, retry=True)

    def unload(self, digest: str) -> int:
        """Drop an idle variant; returns the bytes freed.

        Raises:
            Conflict: requests still use it, or wait for it.
        """
        if count := len(self._requests_of(digest)):
            raise Conflict(f"variant {digest} is used by {count} requests; wait until they end")
        freed = self.variants.unload(digest)
        self._turns.leave(digest, _LOAD)  # whoever asked for it is told that it was cancelled
        self._forget(digest)
        return freed

    def take_out(self, digest: str, reason: str) -> None:
        """Take a variant out of service that answers wrongly."""
        self.variants.fail(digest, reason)
        self._forget(digest)

    def step(self) -> list[StepEvent]:
        """Take in finished loads, compute one batch; what came of it, abortions included."""
        self._take_in_variants()
        self._expire()
        output = self.scheduler.schedule(self._ready, self._clock())
        for request in output.admitted:
            self._retain(request)
        for request in output.preempted:
            self._release(request)
            self._wait(request)
        if output.chunks:
            begin = self._clock()
            results = self._run(output.chunks)
            self._book(output.chunks, results)
            self.counters.steps += 1
            self.counters.last_step_seconds = self._clock() - begin
            self.counters.step_seconds += self.counters.last_step_seconds
            self.scheduler.record(output, self.counters.last_step_seconds)
        events, self._events = self._events, []
        return events

    def _expire(self) -> None:
        for request in self.scheduler.expire(self._clock()):
            self._release(request)
            waited = self._clock() - request.arrival
            reason = f"its deadline passed, {waited:.3f} s after it came"
            self._events.append(ended(request, FinishReason.TIMEOUT, reason))

    def _ready(self, request: Request) -> bool:
        digest = request.variant.digest
        return digest is None or self._turns.may_run(digest)

    def _wait(self, request: Request) -> None:
        """A request of a variant has no seat, yet or any longer."""
        digest = request.variant.digest
        if digest is not None:
            self._turns.wait(digest, request.request_id)
            self._start_watch(request)

    def _start_watch(self, request: Request) -> None:
        if self.variants.get(str(request.variant.digest)) is None:
            request.loading_since = request.loading_since or self._clock()

    def _take_in_variants(self) -> None:
        for outcome in self._turns.advance():
            self._loaded(outcome)
        for digest in self.variants.take_evicted():
            self._forget(digest)
            for request in self._requests_of(digest):
                self._start_watch(request)
        if self.room is not None:
            self.room.arrange()

    def _forget(self, digest: str) -> None:
        """A variant is gone from the device: keep neither it nor what it computed."""
        self._runner.forget()
        self.scheduler.forget(digest)

    def _loaded(self, outcome: LoadOutcome) -> None:
        for on_loaded in self._load_waiters.pop(outcome.digest, ()):
            on_loaded(outcome)
        self._turns.leave(outcome.digest, _LOAD)
        if outcome.variant is None:
            reason = f"the variant could not be loaded: {outcome.error}"
            self._fail(self._requests_of(outcome.digest), reason)
        for request in self._requests_of(outcome.digest):
            if request.loading_since is not None:
                waited = 1000 * (self._clock() - request.loading_since)
                request.variant_load_ms = waited + (request.variant_load_ms or 0.0)
                request.loading_since = None

    def _run(self, chunks: Sequence[Chunk]) -> list[ChunkResult | None]:
        """A result per chunk; None for those whose request ended by a failure."""
        results: list[ChunkResult | None]
        try:
            results = list(self._runner.run(chunks, self._resident(chunks)))
        except Exception:  # whatever it was, someone in the batch caused it: find out who
            logger.exception("a step of %d requests failed; trying them apart", len(chunks))
            results = self._run_apart(chunks)
        for chunk, result in zip(chunks, results, strict=True):
            bad = result is not None and not result.finite
            if bad and chunk.request.finish_reason is None:
                self._blame(chunk, "the model gave non-finite logits")
        return results

    def _run_apart(self, chunks: Sequence[Chunk]) -> list[ChunkResult | None]:
        """Again, every variant by itself and every request of the base by itself. Steps repeat
        exactly, so those that succeed are none the worse for it."""
        groups: defaultdict[str, list[Chunk]] = defaultdict(list)
        for chunk in chunks:
            groups[chunk.request.variant.digest or chunk.request.request_id].append(chunk)
        found: dict[str, ChunkResult] = {}
        for group in groups.values():
            try:
                results = self._runner.run(group, self._resident(group))
            except Exception as error:  # contained here: its requests end, the others go on
                logger.exception("a step of %s failed", group[0].request.variant)
                self._blame(group[0], f"a step failed: {type(error).__name__}: {error}")
            else:
                ids = [chunk.request.request_id for chunk in group]
                found.update(zip(ids, results, strict=True))
        return [found.get(chunk.request.request_id) for chunk in chunks]

    def _blame(self, chunk: Chunk, reason: str) -> None:
        """End whom a failure belongs to: a variant and all its requests, or a base's request."""
        variant = chunk.request.variant
        if variant.digest is None:
            self._fail([chunk.request], reason)
            return
        logger.error("variant %s (%s) is out of service: %s", variant.name, variant.digest, reason)
        self._fail(self._requests_of(variant.digest), f"variant {variant.name!r}: {reason}")
        self.take_out(variant.digest, reason)

    def _book(self, chunks: Sequence[Chunk], results: Sequence[ChunkResult | None]) -> None:
        """Write a computed step into the requests and report it."""
        computed = [
            (chunk, result)
            for chunk, result in zip(chunks, results, strict=True)
            if result is not None and chunk.request.finish_reason is None
        ]
        for chunk, result in computed:
            chunk.request.prompt_logprobs.extend(result.prompt_logprobs)

        self.counters.last_batch_rows = sum(chunk.num_rows for chunk, _ in computed)
        before = [len(chunk.request.output_token_ids) for chunk, _ in computed]
        for request in self.scheduler.update([(c, r.token_ids) for c, r in computed]):
            self._release(request)
        self._events += [
            advanced(c.request, r.logprobs, at)
            for (c, r), at in zip(computed, before, strict=True)
            if r.token_ids
        ]

    def _fail(self, requests: Iterable[Request], reason: str) -> None:
        for request in requests:
            if request.finish_reason is None:
                self.scheduler.finish(request, FinishReason.ERROR)
                self._release(request)
                self._events.append(ended(request, FinishReason.ERROR, reason))

    def _requests_of(self, digest: str) -> list[Request]:
        return [r for r in self.scheduler.requests() if r.variant.digest == digest]

    def _resident(self, chunks: Iterable[Chunk]) -> dict[str, ResidentVariant]:
        digests = {chunk.request.variant.digest for chunk in chunks} - {None}
        found = {d: self.variants.get(d) for d in digests if d is not None}
        return {digest: variant for digest, variant in found.items() if variant is not None}

    def _retain(self, request: Request) -> None:
        if request.variant.digest is not None:
            self.variants.retain(request.variant.digest)
            self._held[request.request_id] = request.variant.digest
            self._turns.run(request)

    def _release(self, request: Request) -> None:
        if request.variant.digest is not None:
            self._turns.leave(request.variant.digest, request.request_id)
        digest = self._held.pop(request.request_id, None)
        if digest is not None:
            self.variants.release(digest)
