"""Client tasks: they send the planned requests at their time and note all that came back.

Owns: the HTTP side of one request and its raw outcome. Does not know which answer is right.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from benchmarks.churn.answers import completion
from benchmarks.churn.known import Known
from benchmarks.churn.plan import Arrival

End = Literal["answered", "left", "not-found", "overloaded", "failed"]
Clock = Callable[[], float]

SHORT_DIGEST = len("sha256:") + 12
TIMEOUT = httpx.Timeout(120.0, connect=30.0)


@dataclass(slots=True)
class Outcome:
    """What became of one arrival. Times in seconds on the clock of the round."""

    index: int  # of the arrival
    arrival: Arrival
    version: str | None  # the digest that it asked for
    sent: float
    accepted: float = 0.0  # the head of the answer came
    first: float | None = None  # the first token came
    ended: float = 0.0
    end: End = "failed"
    digest: str | None = None  # of the version that answered, as its header says
    tokens: tuple[int, ...] = ()
    load_ms: float | None = None  # it waited for a variant that was not in memory
    detail: str = ""

    @property
    def ttft(self) -> float | None:
        """Seconds from sending to the first token."""
        return None if self.first is None else self.first - self.sent

    @property
    def hot(self) -> bool:
        """Whether it was answered whole, by a variant that was in memory when it came."""
        return self.end == "answered" and self.load_ms is None


async def send_all(
    http: httpx.AsyncClient,
    arrivals: Sequence[Arrival],
    known: Known,
    clients: int,
    clock: Clock,
) -> list[Outcome]:
    """Send every arrival at its time through `clients` tasks, each with one request at a time.

    A request that finds all tasks busy is sent late; `Outcome.sent` says when.
    """
    waiting: Iterator[tuple[int, Arrival]] = iter(enumerate(arrivals))
    outcomes: list[Outcome] = []

    async def client() -> None:
        for index, arrival in waiting:  # shared: each arrival is taken once
            await asyncio.sleep(max(0.0, arrival.at - clock()))
            version = known.digests[arrival.version] if arrival.version else None
            outcome = Outcome(index, arrival, version, clock())
            await ask(http, outcome, known.prompts[arrival.question], clock)
            outcomes.append(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return sorted(outcomes, key=lambda outcome: outcome.index)


async def ask(
    http: httpx.AsyncClient, outcome: Outcome, prompt: tuple[int, ...], clock: Clock
) -> None:
    """One streamed request, from the first byte to the end or to where the client leaves."""
    user = outcome.arrival.user
    options = {"stream": True, "stream_options": {"include_usage": True}, "user": user}
    body = completion(model_of(outcome), prompt, **options)
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            outcome.accepted = clock()
            outcome.digest = digest_of(response)
            if response.status_code == 200:
                await _read(response, outcome, clock)
            else:
                _refused(response.status_code, await response.aread(), outcome)
    except httpx.HTTPError as error:
        outcome.detail = f"{type(error).__name__}: {error}"
    outcome.ended = clock()


def model_of(outcome: Outcome) -> str:
    """NAME, or NAME@sha256: and as much of a digest as the contract asks for."""
    version = "" if outcome.version is None else f"@{outcome.version[:SHORT_DIGEST]}"
    return outcome.arrival.name + version


def digest_of(response: httpx.Response) -> str | None:
    """The version in `x-tsugiki-variant: NAME@sha256:...`."""
    return response.headers.get("x-tsugiki-variant", "").partition("@")[2] or None


async def _read(response: httpx.Response, outcome: Outcome, clock: Clock) -> None:
    """Take the chunks; a stream that stops without a finish reason and [DONE] has failed."""
    finish: str | None = None
    leaves_after = outcome.arrival.leaves_after
    async for event in events(response):
        if event is None:
            outcome.end = "answered" if finish in ("stop", "length") else "failed"
            outcome.detail = "" if outcome.end == "answered" else f"finish reason {finish}"
            return
        if "error" in event:
            outcome.detail = json.dumps(event["error"])
            return
        if usage := event.get("usage"):
            outcome.load_ms = usage.get("variant_load_ms")
        for choice in event["choices"]:
            finish = choice["finish_reason"] or finish
            outcome.tokens += tuple(choice.get("token_ids") or ())
        if outcome.tokens and outcome.first is None:
            outcome.first = clock()
        if leaves_after is not None and len(outcome.tokens) >= leaves_after:
            outcome.end = "left"
            return
    outcome.detail = "the stream stopped without [DONE]"


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a stream; None for [DONE]."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


def _refused(status: int, body: bytes, outcome: Outcome) -> None:
    ends: dict[int, End] = {404: "not-found", 429: "overloaded"}
    outcome.end = ends.get(status, "failed")
    outcome.detail = f"{status} {body.decode(errors='replace')[:300]}"


def running_clock() -> Clock:
    """Seconds since now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
