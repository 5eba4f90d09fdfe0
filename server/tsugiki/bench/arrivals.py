"""When requests are sent: a closed loop of slots, or an open loop of Poisson arrivals.

Owns: the two loops and their end. Does not know what a request is: it calls `send(slot, turn,
begin)` and collects what that returns. `begin` is the moment (perf_counter, seconds) at which the
request was due: in an open loop a client that is late must not flatter the latencies.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
Send = Callable[[int, int, float], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`slots` clients; each sends its next request when its last one ended.

    Ends after `turns` requests of every slot; with `seconds`, no slot starts another afterwards.
    """

    slots: int
    turns: int | None = 4
    seconds: float | None = None

    async def run(self, send: Send[Result]) -> list[Result]:
        """Every result, slot by slot."""
        end = _end(self.seconds)

        async def slot(number: int) -> list[Result]:
            results: list[Result] = []
            while len(results) != self.turns and time.perf_counter() < end:
                results.append(await send(number, len(results), time.perf_counter()))
            return results

        of_slots = await asyncio.gather(*(slot(number) for number in range(self.slots)))
        return [result for results in of_slots for result in results]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals: `rate` requests a second on average, whatever the server does."""

    rate: float
    requests: int | None = 100
    seconds: float | None = None
    seed: int = 0

    async def run(self, send: Send[Result]) -> list[Result]:
        """Every result, in the order of arrivals."""
        start = time.perf_counter()
        tasks: list[asyncio.Task[Result]] = []
        async with asyncio.TaskGroup() as group:
            for number, offset in enumerate(self.times()):
                await asyncio.sleep(start + offset - time.perf_counter())
                tasks.append(group.create_task(_coroutine(send(number, 0, start + offset))))
        return [task.result() for task in tasks]

    def times(self) -> Iterator[float]:
        """Seconds from the start at which requests are due."""
        generator = random.Random(f"arrivals {self.seed}")
        time_, number = generator.expovariate(self.rate), 0
        while number != self.requests and (self.seconds is None or time_ < self.seconds):
            yield time_
            time_, number = time_ + generator.expovariate(self.rate), number + 1


async def _coroutine(awaitable: Awaitable[Result]) -> Result:
    return await awaitable


def _end(seconds: float | None) -> float:
    return float("inf") if seconds is None else time.perf_counter() + seconds
