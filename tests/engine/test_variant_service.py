"""Versions of a running engine: who gets which, what is freed, what is told."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_local_engine import collect, runner_of, running, spec, until
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.request import FinishReason
from tsugiki.engine.variant_info import VariantEvent, VariantInfo
from tsugiki.engine.variant_watch import VariantWatch
from tsugiki.errors import Conflict, ModelNotFound

EngineFactory = Callable[..., LocalEngine]


async def upload(
    engine: LocalEngine, text: str, *, name: str = "one", pin: bool = False, activate: bool = True
) -> VariantInfo:
    path = engine.upload_area() / f"{text}.part"
    path.write_text(text)
    return (await engine.put_variant(name, path, pin=pin, activate=activate))[0]


def info_of(engine: LocalEngine, digest: str | None) -> VariantInfo:
    return next(info for info in engine.variants() if info.digest == digest)


def directory(engine: LocalEngine) -> Path:
    return engine.upload_area().parent.parent


async def told(engine: LocalEngine, count: int) -> list[VariantEvent]:
    """The first so many events since the engine was made."""
    async with asyncio.timeout(20):
        reader = engine.events(after=0)
        return [await anext(reader) for _ in range(count)]


def test_an_earlier_version_is_activated_by_digest(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            before = engine.resolve("one")
            await upload(engine, "better")
            info = await engine.activate_variant("one", str(before.digest)[:19])
            assert (info.digest, info.active) == (before.digest, True)
            assert engine.resolve("one") == before
            with pytest.raises(ModelNotFound):
                await engine.activate_variant("one", "sha256:000000000000")
            actions = [entry.action for entry in await engine.variant_history("one")]
            assert actions[-2:] == ["activate", "activate"]

    asyncio.run(scenario())


def test_a_canary_answers_its_share_of_the_users_and_always_the_same(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            active = engine.resolve("one")
            canary = await upload(engine, "canary", activate=False)
            info = await engine.canary_variant("one", canary.digest, 30)
            assert (info.canary_percent, info.active) == (30, False)
            users = [f"user-{i}" for i in range(400)]
            first = {user: engine.resolve("one", user).digest for user in users}
            share = sum(digest == canary.digest for digest in first.values()) / len(users)
            assert 0.2 < share < 0.4
            assert {user: engine.resolve("one", user).digest for user in users} == first
            assert engine.resolve("one") == engine.resolve("one", "") == active
            assert (await engine.canary_variant("one", canary.digest, 0)).canary_percent == 0
            assert {engine.resolve("one", user) for user in users} == {active}

    asyncio.run(scenario())


def test_a_request_keeps_its_version_through_replacement_and_deletion(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            old = engine.resolve("one")
            runner_of(engine).gate.clear()
            stream = engine.submit(spec(variant=old, max_tokens=20))
            new = await upload(engine, "better")
            deleting = asyncio.create_task(engine.delete_version("one", str(old.digest)))
            await until(lambda: all(info.digest != old.digest for info in engine.variants()))
            assert not deleting.done()
            assert engine.resolve("one").digest == new.digest
            runner_of(engine).gate.set()
            assert (await collect(stream))[-1].finish_reason is FinishReason.LENGTH
            assert await deleting >= 10 + len("one")
            assert engine.stats().resident_variants == 0

    asyncio.run(scenario())


def test_the_active_version_is_not_deleted_alone(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            one = engine.resolve("one")
            with pytest.raises(Conflict):
                await engine.delete_version("one", str(one.digest))
            assert engine.resolve("one") == one

    asyncio.run(scenario())


def test_what_two_names_have_is_freed_with_the_last(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            info = await upload(engine, "shared", name="first")
            await upload(engine, "shared", name="second")
            await engine.load_variant("first")
            assert await engine.delete_variant("first") == 0
            assert info_of(engine, info.digest).state == "ready"
            assert await engine.delete_variant("second") >= 10 + len("shared")
            assert engine.stats().resident_variant_bytes == 0

    asyncio.run(scenario())


def test_a_pin_moves_to_the_version_that_the_name_means(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            old = engine.resolve("one").digest
            await engine.pin_variant("one", True)
            new = await upload(engine, "better")
            await until(lambda: info_of(engine, new.digest).state == "ready")
            assert info_of(engine, new.digest).pinned
            assert not info_of(engine, old).pinned
            await engine.rollback_variant("one")
            await until(lambda: info_of(engine, old).pinned)
            assert not info_of(engine, new.digest).pinned

    asyncio.run(scenario())


def test_what_happens_is_told_in_order(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            old = engine.resolve("one").digest
            new = (await upload(engine, "better")).digest
            await engine.load_variant("one")
            await engine.rollback_variant("one")
            await engine.canary_variant("one", new, 5)
            await engine.delete_version("one", new)
            events = await told(engine, 7)
            assert [(event.kind, event.digest) for event in events] == [
                ("uploaded", new),
                ("activated", new),
                ("loading", new),
                ("ready", new),
                ("rolled_back", old),
                ("canary", new),
                ("deleted", new),
            ]
            assert events[5].detail == "5 %"
            assert {event.name for event in events} == {"one"}

    asyncio.run(scenario())


def test_the_watch_takes_in_what_the_operator_does(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            watch = VariantWatch(engine._service, 0.0)
            root = directory(engine)
            (root / "fresh.safetensors").write_text("fresh")
            await watch.look()
            await watch.look()
            fresh = engine.resolve("fresh").digest
            await engine.load_variant("fresh")
            (root / "fresh.safetensors").unlink()
            await watch.look()
            await watch.look()
            with pytest.raises(ModelNotFound):
                engine.resolve("fresh")
            await until(lambda: engine.stats().resident_variants == 0)
            kinds = [event.kind for event in await told(engine, 4)]
            assert kinds == ["file_added", "loading", "ready", "file_removed"]
            assert fresh not in {info.digest for info in engine.variants()}
            await watch.stop()

    asyncio.run(scenario())


def test_the_watch_goes_on_after_a_failure(
    make_engine: EngineFactory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            looks: list[float] = []
            enough = asyncio.Event()

            async def wait(seconds: float) -> None:
                looks.append(seconds)
                if len(looks) > 6:
                    enough.set()
                    await asyncio.Event().wait()

            def away() -> None:
                if len(looks) < 4:
                    raise OSError("the disk is away")
                original()

            original = engine._service.registry.rescan
            monkeypatch.setattr(engine._service.registry, "rescan", lambda *_: away() or [])
            watch = VariantWatch(engine._service, 2.0, wait=wait)
            watch.start()
            async with asyncio.timeout(20):
                await enough.wait()
            assert looks == [2.0] * 7
            await watch.stop()

    asyncio.run(scenario())
    assert caplog.text.count("cannot be watched") == 1


def test_uploads_that_take_long_hold_up_neither_prompts_nor_a_rollback(
    make_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            old = engine.resolve("one")
            await upload(engine, "better")
            verified = threading.Event()
            registry, put = engine._service.registry, engine._service.registry.put

            def slow_put(*arguments: Any) -> Any:
                assert verified.wait(20)
                return put(*arguments)

            monkeypatch.setattr(registry, "put", slow_put)
            uploads = [
                asyncio.create_task(upload(engine, f"slow {i}", name=f"n{i}")) for i in range(40)
            ]
            async with asyncio.timeout(20):
                assert (await engine.rollback_variant("one")).digest == old.digest
                assert await asyncio.to_thread(lambda: "tokenised") == "tokenised"
            assert not any(task.done() for task in uploads)
            verified.set()
            assert len({info.digest for info in await asyncio.gather(*uploads)}) == 40

    asyncio.run(scenario())


def test_a_version_that_comes_back_is_not_waited_for(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            digest = (await upload(engine, "again", name="new")).digest
            runner_of(engine).gate.clear()
            stream = engine.submit(spec(variant=engine.resolve("new"), max_tokens=20))
            deleting = asyncio.create_task(engine.delete_variant("new"))
            await until(lambda: len(engine.models()) == 3)
            assert not deleting.done()
            await upload(engine, "again", name="new")
            assert await deleting == 0
            assert engine.resolve("new").digest == digest
            runner_of(engine).gate.set()
            assert (await collect(stream))[-1].finish_reason is FinishReason.LENGTH

    asyncio.run(scenario())


def test_a_request_that_was_resolved_before_a_deletion_is_a_404_after_it(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            one = engine.resolve("one")
            runner_of(engine).gate.clear()
            stream = engine.submit(spec("open", one, max_tokens=20))
            deleting = asyncio.create_task(engine.delete_variant("one"))
            await until(lambda: len(engine.models()) == 2)
            with pytest.raises(ModelNotFound):
                engine.submit(spec("late", one))
            runner_of(engine).gate.set()
            assert (await collect(stream))[-1].finish_reason is FinishReason.LENGTH
            assert await deleting > 0

    asyncio.run(scenario())
