"""The order in which waiting requests are considered: fair between tenants.

Owns: one first-come-first-served queue per tenant, and how many tokens each tenant was served. The
tenant served least comes first (virtual token counters: Sheng et al., "Fairness in Serving Large
Language Models", OSDI 2024, section 4). Preempted requests come before all others: they have
already waited once. Does not know seats, blocks or variants.
"""

import heapq
from collections import deque
from collections.abc import Iterator

from tsugiki.engine.request import Request


class WaitingQueue:
    """Requests that do not run yet, or no longer."""

    def __init__(self) -> None:
        self._preempted: deque[Request] = deque()
        self._tenants: dict[str, deque[Request]] = {}  # tenants with waiting requests only
        self._service: dict[str, float] = {}  # tokens computed for every tenant ever seen
        self._floor = 0.0  # the service of the tenant that left the queue last

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._tenants.values()))

    def add(self, request: Request) -> None:
        """Queue a new request behind its tenant's others."""
        queue = self._tenants.get(request.tenant)
        if queue is None:
            self._lift(request.tenant)
            queue = self._tenants[request.tenant] = deque()
        queue.append(request)

    def put_back(self, request: Request) -> None:
        """Queue a preempted request before all others."""
        self._preempted.appendleft(request)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        if request.preemptions:
            self._preempted.remove(request)
            return
        queue = self._tenants[request.tenant]
        queue.remove(request)
        if not queue:
            del self._tenants[request.tenant]
            self._floor = self._service[request.tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Book tokens computed for a tenant."""
        self._service[tenant] += tokens

    def in_order(self) -> Iterator[Request]:
        """Every waiting request. The caller may `remove` and `charge` what was yielded last."""
        yield from list(self._preempted)
        queues = {tenant: iter(list(queue)) for tenant, queue in self._tenants.items()}
        heap = [(self._service[tenant], tenant) for tenant in queues]
        heapq.heapify(heap)
        while heap:
            _, tenant = heapq.heappop(heap)
            request = next(queues[tenant], None)
            if request is not None:
                yield request
                heapq.heappush(heap, (self._service[tenant], tenant))

    def _lift(self, tenant: str) -> None:
        """Being away earns no credit: a tenant joins no better than the least served one here."""
        least = min((self._service[other] for other in self._tenants), default=self._floor)
        self._service[tenant] = max(self._service.get(tenant, 0.0), least)
