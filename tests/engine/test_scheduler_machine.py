"""Scheduler, seats, blocks and prefix cache as one state machine, against a model of what the cache
blocks hold."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.scheduling import scheduler
from tsugiki.engine.prompt_lookup import PromptLookup
from tsugiki.engine.request import (
    FinishReason,
    Request,
    RequestStatus,
    SamplingParams,
    VariantRef,
)
from tsugiki.engine.schedule import Chunk
from tsugiki.engine.scheduler import Scheduler
from tsugiki.engine.tenants import rank

Content = tuple[str | None, str | None, int]  # what a place of the cache holds: whose, which token

PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24)  # few tokens: many equal beginnings
DIGESTS = st.sampled_from([None, "a", "b"])


def request_of(number: int, prompt: list[int], max_tokens: int, **fields: Any) -> Request:
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=fields.pop("scored", None))
    digest = fields.pop("digest", None)
    values = {"tenant": "t", "arrival": float(number)} | fields
    return Request(f"r{number}", VariantRef("v", digest), tuple(prompt), params, **values)


def tokens_of(chunk: Chunk, right: int) -> tuple[int, ...]:
    """What a chunk gives: the beginning of its draft, and one token more."""
    return (*chunk.draft[:right], chunk.start % 2) if chunk.completes else ()


class Cache:
    """What the blocks hold, written by the chunks of each step."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._places: dict[tuple[int, int], Content] = {}

    def compute(self, chunk: Chunk) -> None:
        """Write a chunk, and check that everything before it is what the request would have."""
        request, stop = chunk.request, chunk.start + chunk.num_tokens
        assert 0 < chunk.num_tokens <= request.num_tokens - chunk.start
        assert chunk.completes or not chunk.draft
        owner = (request.variant.digest, request.cache_salt)
        for position, token in enumerate([*request.tokens(0, stop), *chunk.draft]):
            place = (request.block_table[position // self._size], position % self._size)
            if position >= chunk.start:
                self._places[place] = (*owner, token)
            assert self._places[place] == (*owner, token)


class Scheduling(RuleBasedStateMachine):
    """Requests come, end, expire; variants leave; steps are computed or fail."""

    it: Scheduler

    @initialize(
        blocks=st.integers(8, 24),
        size=st.integers(1, 4),
        seqs=st.integers(1, 4),
        tokens=st.integers(1, 20),
    )
    def begin(self, blocks: int, size: int, seqs: int, tokens: int) -> None:
        self.it = scheduler(blocks=blocks, block_size=size, seqs=seqs, tokens=tokens)
        self.it.lookup = PromptLookup()
        self.cache = Cache(size)
        self.now = 0.0
        self.ready = {"a", "b", None}
        self.number = 0
        self.ended: dict[str, Request] = {}
        self.added: dict[str, Request] = {}

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(0, 12),
        tenant=st.sampled_from("xyz"),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        digest=DIGESTS,
        cache_salt=st.sampled_from([None, None, "s"]),
        priority=st.integers(-1, 2),
        patience=st.sampled_from([None, None, 3, 30]),
        scored=st.sampled_from([None, None, None, 0]),
    )
    def add(self, prompt: list[int], max_tokens: int, patience: int | None, **fields: Any) -> None:
        deadline = None if patience is None else self.now + patience
        values = fields | {"arrival": self.now, "deadline": deadline}
        request = request_of(self.number, prompt, max_tokens, **values)
        self.number += 1
        if self.it.blocks.fits(request.max_total_tokens):
            self.it.add(request)
            self.added[request.request_id] = request

    @rule(which=st.integers(0, 50))
    def abort(self, which: int) -> None:
        request = self.it.abort(f"r{which}")
        if request is not None:
            self.end(request, FinishReason.ABORT)

    @rule(digest=DIGESTS)
    def load_or_unload(self, digest: str | None) -> None:
        if digest not in self.ready:
            self.ready.add(digest)
        elif digest is not None and all(r.variant.digest != digest for r in self.it.running):
            self.ready.discard(digest)
            self.it.forget(digest)
            assert not self.it.blocks.cache.of(digest)

    @rule(failing=st.sampled_from([None, None, None, 0, 1]), right=st.integers(0, 7))
    def step(self, failing: int | None = None, right: int = 7) -> None:
        """`right`: so many tokens of each draft are."""
        self.now += 1
        for request in self.it.expire(self.now):
            assert request.deadline is not None
            assert request.deadline <= self.now
            self.end(request, FinishReason.TIMEOUT)
        output = self.it.schedule(lambda request: request.variant.digest in self.ready, self.now)
        limits = self.it.limits
        assert sum(chunk.num_rows for chunk in output.chunks) <= limits.max_num_batched_tokens
        assert len({chunk.request for chunk in output.chunks}) == len(output.chunks)
        assert not {*output.admitted} & {*output.preempted}
        assert {chunk.request for chunk in output.chunks} <= {*self.it.running}
        for chunk in output.chunks:
            assert chunk.start == chunk.request.num_computed_tokens
            self.cache.compute(chunk)
            self.writes_are_private(chunk)
        done = output.chunks
        if failing is not None and failing < len(done):
            request = done[failing].request
            self.it.finish(request, FinishReason.ERROR)
            self.end(request, FinishReason.ERROR)
            done = [chunk for chunk in done if chunk.request is not request]
        for request in self.it.update([(c, tokens_of(c, right)) for c in done]):
            self.end(request, FinishReason.LENGTH)

    @precondition(lambda self: self.ready >= {"a", "b"})
    @rule()
    def drain(self) -> None:
        for _ in range(40 + 40 * len(self.it)):
            self.step()
            self.books_are_exact()
        assert not len(self.it), "everything ends once nothing new comes"

    def writes_are_private(self, chunk: Chunk) -> None:
        """What is written is in nobody else's table."""
        first = chunk.start // self.it.blocks.block_size
        written = {*chunk.request.block_table[first:]}
        for request in self.it.running:
            assert request is chunk.request or not written & {*request.block_table}

    def end(self, request: Request, reason: FinishReason) -> None:
        assert request.request_id not in self.ended
        assert request.finish_reason is reason
        assert not request.block_table
        self.ended[request.request_id] = request

    @invariant()
    def books_are_exact(self) -> None:
        if not hasattr(self, "it"):
            return
        it = self.it
        it.blocks.check(request.block_table for request in it.running)
        assert len(it.running) <= it.limits.max_num_seqs
        assert {r.request_id for r in it.requests()} == self.added.keys() - self.ended.keys()
        waiting = [r for tenant in it.tenants.waiting() for r in tenant.waiting]
        assert len(waiting) == it.tenants.num_waiting
        assert len(waiting) + len(it.running) == len(it)
        assert all(r.status is RequestStatus.WAITING and not r.block_table for r in waiting)
        for tenant in it.tenants.waiting():
            assert tenant.waiting == sorted(tenant.waiting, key=rank)
        for request in it.running:
            tenant = it.tenants.of(request)
            assert tenant.running == sum(r.tenant == tenant.name for r in it.running)

    def teardown(self) -> None:
        if hasattr(self, "it"):
            self.ready = {"a", "b", None}
            self.drain()
            assert self.it.blocks.num_free == self.it.blocks.num_blocks


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@settings(max_examples=30, deadline=None)
@given(
    prompt=st.integers(1, 30),
    max_tokens=st.integers(1, 10),
    priority=st.integers(-1, 3),
    newcomers=st.integers(1, 3),
    seqs=st.integers(1, 4),
    others=st.integers(1, 8),
)
def test_nobody_starves_whatever_keeps_coming(
    prompt: int, max_tokens: int, priority: int, newcomers: int, seqs: int, others: int
) -> None:
    """More work comes in every step than fits, from new tenants and with any priority."""
    it = scheduler(blocks=12, block_size=4, seqs=seqs, tokens=12)
    patient = request_of(0, list(range(prompt)), max_tokens, tenant="patient", priority=priority)
    it.add(patient)
    number = 1
    for now in range(1, 1500):
        for _ in range(newcomers):
            fields = {"arrival": float(now), "priority": number % 3 - 1}
            tenant = f"t{number % others}"
            it.add(request_of(number, [number] * 11, 4, tenant=tenant, **fields))
            number += 1
        output = it.schedule(lambda request: True, float(now))
        it.update([(c, (7,) if c.completes else ()) for c in output.chunks])
        if patient.finish_reason is not None:
            break
    assert patient.finish_reason is FinishReason.LENGTH
