"""One measurement: warm up, then send the workload as the arrivals say.

Owns: the order of these, wall time and what the client itself cost. Does not know statistics.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tsugiki.bench.arrivals import ClosedLoop, OpenLoop
from tsugiki.bench.client import LoadClient
from tsugiki.bench.outcome import Outcome
from tsugiki.bench.workload import Workload
from tsugiki.errors import UserError


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen.

    Attributes:
        outcomes: of every request, warm-up left out.
        seconds: from the first request to the end of the last answer.
        client_seconds: processor time of this process meanwhile.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    client_seconds: float


async def measure(
    client: LoadClient, workload: Workload, arrivals: ClosedLoop | OpenLoop, warm_up: int
) -> Measurement:
    """Send `warm_up` requests, at most as many at a time as a closed loop has slots; then measure.

    Raises:
        UserError: no request of the warm-up went well; names the first one's error.
    """
    at_once = arrivals.slots if isinstance(arrivals, ClosedLoop) else 8
    await _warm(client, workload, warm_up, at_once)

    async def send(slot: int, turn: int, begin: float) -> Outcome:
        return await client.send(workload.ask(slot, turn), begin)

    start, cpu = time.perf_counter(), time.process_time()
    outcomes = await arrivals.run(send)
    return Measurement(outcomes, time.perf_counter() - start, time.process_time() - cpu)


async def _warm(client: LoadClient, workload: Workload, requests: int, at_once: int) -> None:
    """Each model in turn, so that whatever a first request costs is paid before the clock runs."""
    numbers = iter(range(requests))

    async def slot() -> list[Outcome]:
        return [await client.send(workload.warm(number), time.perf_counter()) for number in numbers]

    of_slots = await asyncio.gather(*(slot() for _ in range(at_once)))
    errors = [outcome.error for outcomes in of_slots for outcome in outcomes]
    if errors and all(errors):
        raise UserError(f"no request of the warm-up went well; the first one: {errors[0]}")
