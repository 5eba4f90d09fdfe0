"""One round: the planned traffic and the planned changes on a running server, and what they gave.

Owns: running both beside each other, and the summary of a round. Does not know how plans are made
nor how rounds compare.
"""

import asyncio
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.churn.check import judge
from benchmarks.churn.known import Known
from benchmarks.churn.ledger import Ledger
from benchmarks.churn.memory import resident, settled_memory
from benchmarks.churn.operations import Churn, Report
from benchmarks.churn.plan import Plan
from benchmarks.churn.traffic import TIMEOUT, Outcome, running_clock, send_all


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and what is known of its variants."""

    url: str
    pid: int
    folder: Path  # of the variant files that operations upload
    known: Known
    clients: int


@dataclass(slots=True)
class Round:
    """What one round gave; plain data, so that it can be stored."""

    kind: str
    pid: int  # of the server: memory compares within one process only
    requests: dict[str, int]
    compared_tokens: int
    wrong: list[str]
    lost: list[str]
    operations: dict[str, Any]
    memory: dict[str, int]
    resident_variants: int
    resident_bytes: int
    late: float  # seconds that the latest request was sent after its time
    ttft: dict[str, float]  # seconds, by index of the arrival: those answered by a hot variant
    cold_ttft: list[float] = field(default_factory=list)  # those that waited for a load


@dataclass(frozen=True, slots=True)
class Played:
    """What happened on the wire."""

    outcomes: list[Outcome]
    report: Report
    resident: tuple[int, int]  # variants in memory when the traffic ended, and their bytes


async def play(http: httpx.AsyncClient, plan: Plan, target: Target, ledger: Ledger) -> Played:
    """Traffic and changes beside each other, then the restoration. Books into `ledger`."""
    clock = running_clock()
    churn = Churn(http, target.folder, target.known.digests, ledger, clock)
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(
            send_all(http, plan.arrivals, target.known, target.clients, clock)
        )
        group.create_task(churn.run(plan.operations))
    held = await resident(http)
    await churn.run(plan.restore)
    return Played(sending.result(), churn.report, held)


def connection(target: Target) -> httpx.AsyncClient:
    """The HTTP client of all tasks: as many connections as they need."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=target.clients)
    return httpx.AsyncClient(base_url=target.url, timeout=TIMEOUT, limits=limits)


async def run_round(kind: str, plan: Plan, target: Target, ledger: Ledger) -> Round:
    """Run a plan to its end and judge it."""
    async with connection(target) as http:
        played = await play(http, plan, target, ledger)
        memory = await settled_memory(target.pid)
    outcomes = played.outcomes
    verdict = judge(outcomes, ledger.history, target.known.kept, len(plan.arrivals))
    return Round(
        kind=kind,
        pid=target.pid,
        requests=verdict.counts,
        compared_tokens=verdict.compared_tokens,
        wrong=verdict.wrong,
        lost=verdict.lost,
        operations=_summary(played.report),
        memory=asdict(memory),
        resident_variants=played.resident[0],
        resident_bytes=played.resident[1],
        late=max((o.sent - o.arrival.at for o in outcomes), default=0.0),
        ttft=_hot(outcomes),
        cold_ttft=[o.ttft for o in outcomes if o.load_ms is not None and o.ttft is not None],
    )


def _hot(outcomes: list[Outcome]) -> dict[str, float]:
    return {str(o.index): o.ttft for o in outcomes if o.hot and o.ttft is not None}


def _summary(report: Report) -> dict[str, Any]:
    seconds = {kind: max(values) for kind, values in sorted(report.seconds.items())}
    return {"done": report.done, "slowest": seconds, "surprises": report.surprises}
