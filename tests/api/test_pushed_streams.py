"""Pieces that are written by whoever has the news, without a turn of the event loop."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from starlette.types import Message

from tests.api.fake_engine import BASE, FakeEngine
from tsugiki.api.sequences import Sequences, Step
from tsugiki.api.sse import PieceWriter
from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.mailbox import Mailbox
from tsugiki.engine.request import SamplingParams


class SlowClient:
    """A `send` that waits while the client does not read."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.received: list[bytes] = []

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.received.append(message["body"])


def test_a_piece_is_sent_before_write_returns() -> None:
    async def run() -> None:
        client = SlowClient()
        client.reads.set()
        assert PieceWriter(client.send).write(b"one")
        assert client.received == [b"one"]

    asyncio.run(run())


def test_a_piece_that_has_to_wait_is_finished_by_the_task_of_the_answer() -> None:
    async def run() -> None:
        client = SlowClient()
        writer = PieceWriter(client.send)
        assert not writer.write(b"one")
        behind = asyncio.create_task(writer.caught_up())
        await asyncio.sleep(0)
        assert not behind.done()
        client.reads.set()
        await behind
        assert writer.write(b"two")
        assert client.received == [b"one", b"two"]

    asyncio.run(run())


def test_what_send_raises_reaches_the_one_who_writes() -> None:
    async def broken(message: Message) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        PieceWriter(broken).write(b"one")


def test_nothing_is_sent_for_a_step_without_news() -> None:
    async def never(message: Message) -> None:
        raise AssertionError("an empty piece would end a chunked answer")

    assert PieceWriter(never).write(b"")


def test_a_mailbox_lets_its_reader_look_up() -> None:
    async def run() -> None:
        box: Mailbox[int] = Mailbox()
        waiting = asyncio.create_task(box.arrival())
        await asyncio.sleep(0)
        box.interrupt()
        await waiting
        assert not box
        box.put(1)
        await box.arrival()
        assert await box.take() == [1]

    asyncio.run(run())


def test_a_failure_while_a_piece_is_written_stays_with_its_own_answer(tmp_path: Path) -> None:
    async def run() -> None:
        engine = FakeEngine(uploads=tmp_path, script=endless)
        spec = GenerationSpec("one", engine.resolve(BASE), (1,), SamplingParams(max_tokens=9))
        sequences = Sequences(engine, [spec])

        def cannot_write(step: Step) -> bool:
            raise ValueError("cannot be written")

        await sequences.push(cannot_write)
        with pytest.raises(ValueError, match="cannot be written"):
            await sequences.next()
        assert not engine.running["one"].done()  # whoever told the news noticed nothing
        sequences.close()
        assert engine.aborted == ["one"]

    asyncio.run(run())


def test_steps_are_pushed_until_the_taker_is_behind_and_the_rest_waits(tmp_path: Path) -> None:
    async def run() -> None:
        engine = FakeEngine(uploads=tmp_path, answer="abcdef")
        spec = GenerationSpec("one", engine.resolve(BASE), (1,), SamplingParams(max_tokens=9))
        sequences = Sequences(engine, [spec])
        pushed: list[str] = []

        def take(step: Step) -> bool:
            pushed.extend(event.text for _, event in step)
            return len(pushed) < 3

        await sequences.push(take)
        rest = ""
        while not sequences.ended:
            rest += "".join(event.text for _, event in await sequences.next())
        assert (pushed, rest) == (["a", "b", "c"], "def")

    asyncio.run(run())


async def endless(spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
    """A token, then silence."""
    yield GenerationEvent("a", (97,))
    await asyncio.Event().wait()
