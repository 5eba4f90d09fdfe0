"""The requests that clients wait for, and who waits for them to end.

Owns: which requests are open, and how many of each variant and tenant. Lives on the event loop.
Does not know what the requests are about.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from tsugiki.engine.admission import Queue
from tsugiki.engine.stream import OpenRequest


class OpenRequests:
    """Accepted requests without a terminal event."""

    def __init__(self) -> None:
        self._requests: dict[str, OpenRequest] = {}
        self._of_digest: Counter[str | None] = Counter()
        self._of_tenant: Counter[str] = Counter()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def get(self, request_id: str) -> OpenRequest | None:
        """The open request of this id."""
        return self._requests.get(request_id)

    def all(self) -> list[OpenRequest]:
        """Every open request, oldest first."""
        return list(self._requests.values())

    def add(self, request: OpenRequest) -> None:
        """A request was accepted."""
        self._requests[request.spec.request_id] = request
        self._of_digest[request.spec.variant.digest] += 1
        self._of_tenant[request.spec.tenant] += 1

    def remove(self, request: OpenRequest) -> None:
        """A request has ended."""
        del self._requests[request.spec.request_id]
        self._of_tenant[request.spec.tenant] -= 1
        if not self._of_tenant[request.spec.tenant]:
            del self._of_tenant[request.spec.tenant]
        self._of_digest[request.spec.variant.digest] -= 1
        if not self._of_digest[request.spec.variant.digest]:
            del self._of_digest[request.spec.variant.digest]
            self.wake()

    def of(self, digest: str) -> int:
        """How many use this variant."""
        return self._of_digest.get(digest, 0)

    def queue(self, tenant: str) -> Queue:
        """What a new request of this tenant finds."""
        others = len(self._of_tenant.keys() - {tenant})
        return Queue(len(self._requests), self._of_tenant.get(tenant, 0), others + 1)

    async def none_left(self) -> None:
        """Wait until nothing is open."""
        await self._wait(lambda: not self._requests)

    async def none_of(self, digest: str, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until nothing uses this variant, or `unless` holds when somebody calls `wake`."""
        await self._wait(lambda: not self.of(digest) or unless())

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiters.append((condition, future))
            await future

    def wake(self) -> None:
        """Look again whether those who wait may go on."""
        waiters, self._waiters = self._waiters, []
        for condition, future in waiters:
            if not condition():
                self._waiters.append((condition, future))
            elif not future.done():
                future.set_result(None)
