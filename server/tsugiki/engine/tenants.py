"""Whose turn it is: requests that wait, by tenant, and the service that every tenant received.

Owns: the virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
2024, section 4), here in tokens per unit of weight, and each tenant's queue. Does not know blocks,
chunks or variants.

The tenant served least goes first; among equals the one that holds fewer seats for its weight.
A prompt that has begun is finished before others begin, unless their tenants are far behind or its
own wants more than a fair share of what runs: prompts computed a piece each in turn would all end
as late as the last one.
Being away earns no credit: who has nothing waiting and comes back starts no lower than the least
served of those who run. What is computed again after a preemption is not charged.

Priorities (lower first) rank a tenant's own requests. Between tenants a priority below 0 gains
nothing, so that nobody can take another's share by asking; above 0 it yields to everybody. A
priority improves by one for every `AGING_SECONDS` that the request has waited: that is what keeps
it from waiting for ever.
"""

from bisect import insort_left, insort_right
from dataclasses import dataclass, field
from math import ceil

from tsugiki.engine.request import Request, RequestStatus

AGING_SECONDS = 10.0
PATIENCE = 512.0  # tokens per unit of weight: those who are no further behind let a prompt end

Turn = tuple[int, float, float]


@dataclass(slots=True, eq=False)
class Tenant:
    """One tenant. `waiting` is sorted, first come first of equal rank."""

    name: str
    weight: float = 1.0
    service: float = 0.0  # tokens computed, per unit of weight
    running: int = 0  # requests
    waiting: list[Request] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """It wants something."""
        return bool(self.running or self.waiting)

    @property
    def requests(self) -> int:
        """That run or wait."""
        return self.running + len(self.waiting)


def rank(request: Request) -> float:
    """Its place among its tenant's requests, lowest first: all of them age alike, so that the order
    of two never changes."""
    return request.priority * AGING_SECONDS + request.arrival


class Tenants:
    """Every request that waits; the tenants who are there, and who left with a debt: they were
    served more than those who stayed."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self._tenants: dict[str, Tenant] = {}
        self._waiting: dict[str, Tenant] = {}  # those of them with requests waiting
        self._floor = 0.0  # the service of the tenant that became idle last

    def __len__(self) -> int:
        return len(self._tenants)

    def of(self, request: Request) -> Tenant:
        """The tenant of a request that was added."""
        return self._tenants[request.tenant]

    def waiting(self) -> list[Tenant]:
        """Those who have requests waiting."""
        return list(self._waiting.values())

    def fair_requests(self) -> float:
        """How many requests each would have for a weight of 1, had all equally many."""
        active = [tenant for tenant in self._tenants.values() if tenant.active]
        weights = sum(tenant.weight for tenant in active)
        return sum(tenant.requests for tenant in active) / weights if active else 0.0

    def add(self, request: Request) -> None:
        """Queue a new request."""
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            tenant = self._tenants[request.tenant] = Tenant(request.tenant)
        tenant.weight = request.weight
        if not tenant.waiting:
            self._lift(tenant)
        insort_right(tenant.waiting, request, key=rank)
        self._queued(tenant)

    def start(self, request: Request) -> None:
        """A request that waited runs now."""
        self._unqueue(request)
        self.of(request).running += 1

    def put_back(self, request: Request) -> None:
        """A request that ran waits again, before others of equal rank."""
        tenant = self.of(request)
        tenant.running -= 1
        insort_left(tenant.waiting, request, key=rank)
        self._queued(tenant)

    def leave(self, request: Request, *, running: bool) -> None:
        """A request is over."""
        tenant = self.of(request)
        if running:
            tenant.running -= 1
        else:
            self._unqueue(request)
        if not tenant.active:
            self._floor = tenant.service

    def charge(self, request: Request, stop: int) -> None:
        """Book that a request's tokens before position `stop` are computed."""
        new = stop - max(request.num_charged_tokens, request.num_computed_tokens)
        if new > 0:
            request.num_charged_tokens = stop
            tenant = self._tenants[request.tenant]
            tenant.service += new / tenant.weight

    def _queued(self, tenant: Tenant) -> None:
        self.num_waiting += 1
        self._waiting[tenant.name] = tenant

    def _unqueue(self, request: Request) -> None:
        tenant = self.of(request)
        tenant.waiting.remove(request)
        self.num_waiting -= 1
        if not tenant.waiting:
            del self._waiting[tenant.name]

    def _lift(self, tenant: Tenant) -> None:
        others = [t for t in self._tenants.values() if t.active and t is not tenant]
        # Of those who run, where any do: else newcomers who keep coming would all start where the
        # first one did, and stay ahead of everybody.
        started = [other for other in others if other.running] or others
        least = min((other.service for other in started), default=self._floor)
        tenant.service = max(tenant.service, least)
        self._tenants = {
            known.name: known
            for known in self._tenants.values()
            if known.active or known is tenant or known.service > least
        }


def turn(tenant: Tenant, request: Request, now: float, fair_requests: float) -> Turn:
    """When a tenant's next request is considered, lowest first. `now`: the clock of arrivals;
    `fair_requests`: see Tenants."""
    yielding = 0
    if request.priority > 0:
        yielding = max(0, request.priority - int((now - request.arrival) / AGING_SECONDS))
    begun = request.status is RequestStatus.RUNNING
    modest = tenant.requests <= ceil(fair_requests * tenant.weight)
    service = tenant.service - PATIENCE if begun and modest else tenant.service
    return yielding, service, tenant.running / tenant.weight
