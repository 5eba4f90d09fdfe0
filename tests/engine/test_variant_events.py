"""The ring of events: order, resuming, those who fall behind, and the engine thread's word."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tsugiki.engine.variant_events import VariantEvents
from tsugiki.engine.variant_info import VariantEvent
from tsugiki.variants.residency import EVICTED

START = 5_000


def ring(size: int = 4) -> VariantEvents:
    return VariantEvents(lambda digest: ["a", "b"], size=size, clock=lambda: START / 1000)


def publish(events: VariantEvents, *names: str) -> None:
    for name in names:
        events.publish(name, "sha256:0", "uploaded")


async def take(reader: AsyncGenerator[VariantEvent, None], count: int) -> list[str]:
    async with asyncio.timeout(10):
        return [(await anext(reader)).name for _ in range(count)]


async def rest(reader: AsyncGenerator[VariantEvent, None]) -> list[str]:
    async with asyncio.timeout(10):
        return [event.name async for event in reader]


def test_a_reader_gets_what_happens_from_now_on_in_order() -> None:
    async def scenario() -> None:
        events = ring()
        publish(events, "before")
        reader = events.after(None)
        waiting = asyncio.create_task(take(reader, 3))
        await asyncio.sleep(0)
        publish(events, "x", "y", "z")
        assert await waiting == ["x", "y", "z"]

    asyncio.run(scenario())


def test_sequence_numbers_grow_by_one_from_the_clock() -> None:
    async def scenario() -> None:
        events = ring()
        publish(events, "x", "y")
        reader = events.after(0)
        assert [(await anext(reader)).sequence for _ in range(2)] == [START + 1, START + 2]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("after", "seen"),
    [
        (START + 4, ["5", "6"]),
        (START + 2, ["3", "4", "5", "6"]),
        (START + 1, ["3", "4", "5", "6"]),  # forgotten: all that is remembered
        (17, ["3", "4", "5", "6"]),  # of an earlier run of the server
        (10**15, ["3", "4", "5", "6"]),  # of a server whose clock was ahead
        (START + 6, []),
    ],
)
def test_a_reader_resumes_behind_a_sequence_number(after: int, seen: list[str]) -> None:
    async def scenario() -> None:
        events = ring()
        publish(events, *"123456")
        reader = events.after(after)
        assert await take(reader, len(seen)) == seen
        publish(events, "next")
        assert await take(reader, 1) == ["next"]

    asyncio.run(scenario())


def test_a_reader_that_falls_behind_the_ring_is_cut_off() -> None:
    async def scenario() -> None:
        events = ring()
        reader = events.after(None)
        waiting = asyncio.create_task(take(reader, 1))
        await asyncio.sleep(0)
        publish(events, "first")
        assert await waiting == ["first"]
        publish(events, *"12345")
        assert await rest(reader) == []

    asyncio.run(scenario())


def test_closing_ends_those_who_wait() -> None:
    async def scenario() -> None:
        events = ring()
        waiting = asyncio.create_task(rest(events.after(None)))
        await asyncio.sleep(0)
        events.close()
        assert await waiting == []
        assert await rest(events.after(0)) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("new", "reason", "kind", "detail"),
    [
        ("loading", None, "loading", None),
        ("ready", None, "ready", None),
        ("disk", "unloaded", "unloaded", "unloaded"),
        ("host", EVICTED, "evicted", "to host"),
        ("disk", EVICTED, "evicted", "to disk"),
        ("failed", "bad bytes", "failed", "bad bytes"),
    ],
)
def test_a_transition_on_another_thread_is_an_event_of_every_name(
    new: str, reason: str | None, kind: str, detail: str | None
) -> None:
    async def scenario() -> None:
        events = ring()
        events.transition("sha256:0", "disk", "loading", None)  # nobody can hear it yet
        events.open()
        reader = events.after(0)
        await asyncio.to_thread(events.transition, "sha256:0", "loading", new, reason)
        found = [await anext(reader), await anext(reader)]
        assert [(e.name, e.kind, e.detail) for e in found] == [
            ("a", kind, detail),
            ("b", kind, detail),
        ]

    asyncio.run(scenario())
