"""Whom to take blocks or a seat from, when there are too few.

Owns: the two rules. A preempted request is computed again later, from what the prefix cache still
holds of it; its tokens stay. Does not know how requests are taken out, nor what they are given.

1. To grow: those that run need more blocks than are free. The tenant that holds the most for its
   weight gives up its last request.
2. To claim: a tenant that has nothing running takes from one that holds more than it will hold
   itself, for their weights, and that was served no less. A tenant that does run takes only from
   one that holds `MARGIN` times as much: the rest comes by itself as requests end, and what is
   preempted is computed twice. Nobody takes back what was just taken.

A request that was preempted `MAX_PREEMPTIONS` times is left alone while anybody else can be taken,
and of such only the first in rank is safe: so the first one always gets on, and with it everyone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.request import Request
from tsugiki.engine.tenants import Tenant, Tenants, rank

MAX_PREEMPTIONS = 3
MARGIN = 2.0


def to_grow(running: Sequence[Request], tenants: Tenants) -> Request:
    """The request to preempt when those that run can not all go on."""
    held = _blocks_held(running)

    def order(request: Request) -> tuple[bool, float, float]:
        if request.preemptions >= MAX_PREEMPTIONS:
            return False, 0.0, rank(request)
        return True, held[request.tenant] / tenants.of(request).weight, rank(request)

    # The youngest of equals: `max` keeps the first it meets.
    return max(reversed(running), key=order)


@dataclass(frozen=True, slots=True)
class Lack:
    """What a waiting request needs beyond what is free."""

    seats: int
    blocks: int


def to_claim(
    claimant: Request,
    lack: Lack,
    candidates: Sequence[Request],
    running: Sequence[Request],
    tenants: Tenants,
    blocks: BlockManager,
) -> list[Request]:
    """The requests to preempt, of `candidates`, so that `claimant` can run; none when its tenant
    has no better claim."""
    tenant = tenants.of(claimant)
    pool = [
        request
        for request in candidates
        if request.tenant != claimant.tenant
        and request.preemptions < MAX_PREEMPTIONS
        and tenants.of(request).service >= tenant.service
    ]
    seats = Counter(request.tenant for request in running)
    held = _blocks_held(running)
    mine_in_seats = share_with_one_more(tenant)
    wanted = blocks.blocks_for(claimant.num_tokens)
    mine_in_blocks = _margin(tenant) * (held[tenant.name] + wanted) / tenant.weight
    victims: list[Request] = []
    seats_short, blocks_short = lack.seats, lack.blocks
    while seats_short > 0 or blocks_short > 0:
        holdings, mine = (seats, mine_in_seats) if seats_short > 0 else (held, mine_in_blocks)
        shares = {r.tenant: holdings[r.tenant] / tenants.of(r).weight for r in pool}
        over = [request for request in pool if shares[request.tenant] > mine]
        if not over:
            return []
        victim = max(reversed(over), key=lambda r: (shares[r.tenant], rank(r)))
        pool.remove(victim)
        victims.append(victim)
        seats_short -= 1
        blocks_short -= blocks.freed_by(victim.block_table)
        seats[victim.tenant] -= 1
        held[victim.tenant] -= len(victim.block_table)
    return victims


def share_with_one_more(tenant: Tenant) -> float:
    """What another must hold more of than this, in seats for its weight, to be taken one from."""
    return _margin(tenant) * (tenant.running + 1) / tenant.weight


def _margin(tenant: Tenant) -> float:
    return MARGIN if tenant.running else 1.0


def _blocks_held(running: Sequence[Request]) -> Counter[str]:
    held: Counter[str] = Counter()
    for request in running:
        held[request.tenant] += len(request.block_table)
    return held
