"""Who runs: seats and cache blocks, given to waiting requests and taken back.

Owns: the running requests, their block tables, and what was found in the prefix cache. Whom to take
from is decided by preemption.py. Does not know chunks, budgets or variants.
"""

import math
from collections.abc import Collection
from enum import Enum

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.preemption import Lack, to_claim, to_grow
from tsugiki.engine.prefix_cache import block_keys
from tsugiki.engine.request import Request, RequestStatus
from tsugiki.engine.tenants import Tenants


class Verdict(Enum):
    """What became of a request that asked to run."""

    ADMITTED = "it runs"
    LATER = "not in this step, for reasons of its own"
    NO_SEAT = "all are taken, by tenants with no less claim"
    NO_BLOCKS = "too few are free; who comes after it must not take them either"


class Seats:
    """See above. A step begins with `make_room_to_grow`; then come any number of `admit`."""

    def __init__(
        self, blocks: BlockManager, tenants: Tenants, count: int, *, prefix_caching: bool
    ) -> None:
        self.running: list[Request] = []  # oldest admission first
        self.num_preemptions = 0
        self.prefix_queries = 0  # prompt tokens looked up in the prefix cache,
        self.prefix_hits = 0  # and found there
        self._blocks = blocks
        self._tenants = tenants
        self._count = count
        self._prefix_caching = prefix_caching

    def make_room_to_grow(self) -> list[Request]:
        """Preempt until every running request can have the block that its next token needs."""
        size, preempted = self._blocks.block_size, list[Request]()
        growing = [r for r in self.running if len(r.block_table) * size < r.num_tokens]
        while len(growing) > self._blocks.num_free:
            victim = to_grow(self.running, self._tenants)
            self._preempt(victim)
            preempted.append(victim)
            growing = [request for request in growing if request is not victim]
        return preempted

    def most_for_weight(self) -> float:
        """The most seats for its weight that any tenant holds; infinite while a seat is free."""
        if len(self.running) < self._count:
            return math.inf
        holders = {request.tenant: self._tenants.of(request) for request in self.running}
        return max(tenant.running / tenant.weight for tenant in holders.values())

    def admit(
        self, request: Request, computing: Collection[bytes], busy: Collection[Request]
    ) -> tuple[Verdict, list[Request]]:
        """Let a waiting request run, and whom that preempted.

        Args:
            computing: keys of the blocks that others compute in this step.
            busy: running requests that have a place in this step already.
        """
        shared, keys = self._cached_prefix(request)
        if self._worth_waiting(keys[len(shared) :], computing):
            return Verdict.LATER, []
        need = self._blocks.takes(shared, request.num_tokens) + len(self.running)
        lack = Lack(len(self.running) + 1 - self._count, need - self._blocks.num_free)
        victims: list[Request] = []
        if lack.seats > 0 or lack.blocks > 0:
            victims = self._claim(request, lack, busy)
            if not victims:
                return (Verdict.NO_SEAT if lack.seats > 0 else Verdict.NO_BLOCKS), []
        # Blocks of a victim may be in `shared`: free ones are counted anew.
        need = self._blocks.takes(shared, request.num_tokens) + len(self.running)
        if need > self._blocks.num_free:
            return Verdict.NO_BLOCKS, victims
        self._start(request, shared)
        return Verdict.ADMITTED, victims

    def leave(self, request: Request) -> None:
        """A request is over, wherever it stood."""
        running = request.status is RequestStatus.RUNNING
        if running:
            self.running.remove(request)
        self._tenants.leave(request, running=running)
        self._blocks.free(request.block_table)

    def advance(self, request: Request, tokens: int) -> None:
        """So many more tokens are computed; blocks that are full now can be shared."""
        size = self._blocks.block_size
        first = request.num_computed_tokens // size
        request.num_computed_tokens += tokens
        full = request.num_computed_tokens // size
        if full > first and self._prefix_caching:
            keys, digest = block_keys(request, full, size), request.variant.digest
            for index in range(first, full):
                self._blocks.cache.put(keys[index], request.block_table[index], digest)

    def keys_of(self, request: Request, start: int, stop: int) -> list[bytes]:
        """Keys of the blocks that are full once tokens `start : stop` are computed."""
        if not self._prefix_caching:
            return []
        size = self._blocks.block_size
        return block_keys(request, stop // size, size)[start // size :]

    def _start(self, request: Request, shared: list[int]) -> None:
        """A seat, and blocks for all tokens it has, so that no prefill stops half-way."""
        self._blocks.share(request.block_table, shared)
        self._blocks.extend(request.block_table, request.num_tokens)
        request.num_computed_tokens = len(shared) * self._blocks.block_size
        if not request.preemptions:
            request.num_cached_tokens = request.num_computed_tokens
            self.prefix_queries += request.num_tokens
            self.prefix_hits += request.num_cached_tokens
        self._tenants.start(request)
        request.status = RequestStatus.RUNNING
        self.running.append(request)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._blocks.free(request.block_table)
        request.num_computed_tokens = 0
        request.preemptions += 1
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        self._tenants.put_back(request)

    def _claim(self, request: Request, lack: Lack, busy: Collection[Request]) -> list[Request]:
        idle = [other for other in self.running if other not in busy]
        victims = to_claim(request, lack, idle, self.running, self._tenants, self._blocks)
        for victim in victims:
            self._preempt(victim)
        return victims

    def _cached_prefix(self, request: Request) -> tuple[list[int], list[bytes]]:
        """Blocks that hold its first tokens already, and the keys of all that could. Never its last
        token, whose logits are wanted, and none when those of the whole prompt are."""
        if not self._prefix_caching or request.params.prompt_logprobs is not None:
            return [], []
        full = (request.num_tokens - 1) // self._blocks.block_size
        keys = block_keys(request, full, self._blocks.block_size)
        return self._blocks.cache.match(keys), keys

    def _worth_waiting(self, missing: list[bytes], computing: Collection[bytes]) -> bool:
        """One step more, to find at least half of the blocks that are missing."""
        if not missing or missing[0] not in computing:
            return False
        return 2 * sum(key in computing for key in missing) >= len(missing)
