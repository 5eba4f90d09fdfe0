"""The engine client over a real thread and a scripted model: streams, refusals, drain, variants."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.request import FinishReason, SamplingParams, VariantRef
from tsugiki.errors import (
    ContextTooLong,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unavailable,
    Unsupported,
)

EngineFactory = Callable[..., LocalEngine]
BASE = VariantRef("base", None)
PATIENCE = 20.0


@asynccontextmanager
async def running(engine: LocalEngine, drain: float = 5.0) -> AsyncIterator[LocalEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        runner_of(engine).gate.set()
        await engine.stop(drain)


def runner_of(engine: LocalEngine) -> Any:
    return engine._core._runner


def spec(request_id: str = "r", variant: VariantRef = BASE, **changes: Any) -> GenerationSpec:
    fields = {"prompt_token_ids": (20, 21, 22), "stop": (), "include_stop": False}
    fields |= {name: changes.pop(name) for name in list(changes) if name in fields}
    params = SamplingParams(**({"max_tokens": 8, "temperature": 0.0} | changes))
    return GenerationSpec(request_id, variant, params=params, **fields)


async def collect(stream: AsyncGenerator[GenerationEvent, None]) -> list[GenerationEvent]:
    async with asyncio.timeout(PATIENCE):
        return [event async for event in stream]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def test_a_stream_is_the_text_of_its_tokens(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            events = await collect(engine.submit(spec(max_tokens=30)))
            ids = [token for event in events for token in event.token_ids]
            assert "".join(event.text for event in events) == engine.text(BASE).decode(ids)
            assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
            assert events[-1].finish_reason is FinishReason.LENGTH
            assert (events[-1].prompt_tokens, events[-1].completion_tokens) == (3, 30)

    asyncio.run(scenario())


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_before_it(
    make_engine: EngineFactory, include: bool
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            whole = await collect(engine.submit(spec("a", max_tokens=40)))
            text = "".join(event.text for event in whole)
            stop = text[10:14]
            at = text.index(stop)
            events = await collect(
                engine.submit(spec("b", max_tokens=40, stop=(stop,), include_stop=include))
            )
            assert "".join(e.text for e in events) == text[: at + len(stop) if include else at]
            assert events[-1].finish_reason is FinishReason.STOP
            assert events[-1].stop_reason == stop
            assert events[-1].completion_tokens < 40
            await until(lambda: engine.stats().running == 0)

    asyncio.run(scenario())


def test_many_requests_of_base_and_variants_share_steps(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            runner_of(engine).gate.clear()
            variants = [BASE, engine.resolve("one"), engine.resolve("two")]
            streams = [engine.submit(spec(f"r{i}", v)) for i, v in enumerate(variants * 2)]
            runner_of(engine).gate.set()
            results = await asyncio.gather(*map(collect, streams))
            assert all(r[-1].finish_reason is FinishReason.LENGTH for r in results)
            assert max(map(len, runner_of(engine).batches)) >= 4

    asyncio.run(scenario())


def test_a_consumer_that_is_slow_gets_fewer_larger_events(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            slow = engine.submit(spec("slow", max_tokens=20, logprobs=None))
            await collect(engine.submit(spec("fast", max_tokens=40)))
            events = await collect(slow)
            assert len(events) == 1
            assert len(events[0].token_ids) == 20
            assert events[0].finish_reason is FinishReason.LENGTH

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["close", "close before the first event", "drop"])
def test_a_client_that_leaves_aborts_its_request(make_engine: EngineFactory, how: str) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            stream = engine.submit(spec(max_tokens=900))
            if how == "close":
                await anext(stream)
            if how == "drop":
                del stream
                gc.collect()
            else:
                await stream.aclose()
            await until(lambda: engine.stats().running + engine.stats().waiting == 0)
            assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total

    asyncio.run(scenario())


def test_a_full_queue_refuses_with_a_time_to_come_back(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine(seqs=1, queue=2)) as engine:
            await collect(engine.submit(spec("measured")))
            runner_of(engine).gate.clear()
            streams = [engine.submit(spec(f"r{i}")) for i in range(3)]
            with pytest.raises(Overloaded, match="3 requests are open") as refusal:
                engine.submit(spec("too many"))
            assert 1 <= refusal.value.retry_after <= 120
            runner_of(engine).gate.set()
            await asyncio.gather(*map(collect, streams))
            await collect(engine.submit(spec("again")))

    asyncio.run(scenario())


def test_requests_that_make_no_sense_are_refused_before_the_queue(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine(blocks=16)) as engine:
            with pytest.raises(ContextTooLong, match=r"3 prompt tokens \+ max_tokens 62 = 65"):
                engine.submit(spec(max_tokens=62))
            with pytest.raises(InvalidRequest, match="no tokens"):
                engine.submit(spec(prompt_token_ids=()))
            with pytest.raises(InvalidRequest, match="token id 99999"):
                engine.submit(spec(prompt_token_ids=(5, 99999)))
            with pytest.raises(InvalidRequest, match="token id -1"):
                engine.submit(spec(prompt_token_ids=(5, -1)))
            with pytest.raises(ModelNotFound):
                engine.resolve("three")
            stream = engine.submit(spec("twice"))
            with pytest.raises(InvalidRequest, match="in use"):
                engine.submit(spec("twice"))
            await collect(stream)

    asyncio.run(scenario())


def test_ignore_eos_goes_past_the_models_own_stop_tokens(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            first = (await collect(engine.submit(spec("a"))))[0].token_ids[0]
            stops = frozenset({first})
            stopped = await collect(engine.submit(spec("b", stop_token_ids=stops)))
            assert stopped[-1].finish_reason is FinishReason.STOP
            assert (stopped[-1].stop_reason, stopped[-1].text) == (first, "")
            eos = engine.text(BASE).eos_token_ids
            ended = await collect(engine.submit(spec("c", ignore_eos=True, stop_token_ids=eos)))
            assert ended[-1].completion_tokens == 8

    asyncio.run(scenario())


def test_stopping_finishes_running_requests_and_takes_no_new_ones(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        runner_of(engine).gate.clear()
        stream = engine.submit(spec(max_tokens=50))
        stopping = asyncio.create_task(engine.stop(PATIENCE))
        await until(engine.draining)
        with pytest.raises(Unavailable, match="shutting down"):
            engine.submit(spec("late"))
        runner_of(engine).gate.set()
        events = await collect(stream)
        assert events[-1].finish_reason is FinishReason.LENGTH
        await stopping
        assert not engine.alive()

    asyncio.run(scenario())


def test_what_outlasts_the_drain_is_told_so(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        runner_of(engine).gate.clear()
        stream = engine.submit(spec(max_tokens=500))
        stopping = asyncio.create_task(engine.stop(0.0))
        events = await collect(stream)
        assert events[-1].finish_reason is FinishReason.ABORT
        assert "shutting down" in str(events[-1].error)
        runner_of(engine).gate.set()
        await stopping

    asyncio.run(scenario())


def test_a_dead_engine_says_so_and_leaves_nobody_waiting(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        runner_of(engine).gate.clear()
        streams = [engine.submit(spec(f"r{i}", max_tokens=50)) for i in range(3)]
        runner_of(engine).crash = True
        runner_of(engine).gate.set()
        for events in await asyncio.gather(*map(collect, streams)):
            assert events[-1].finish_reason is FinishReason.ERROR
            assert "the machine is gone" in str(events[-1].error)
        assert not engine.alive()
        with pytest.raises(Unavailable, match="died"):
            engine.submit(spec("late"))
        with pytest.raises(Unavailable):
            await engine.unload_variant("one")
        await engine.stop(0.0)

    asyncio.run(scenario())


def test_models_are_the_base_and_the_variants(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            models = engine.models()
            assert [(m.id, m.parent) for m in models] == [
                ("base", None),
                ("one", "base"),
                ("two", "base"),
            ]
            one = engine.resolve("one")
            assert engine.resolve(f"one@{one.digest}") == one
            assert engine.resolve("base") == BASE

    asyncio.run(scenario())


def test_loading_pinning_and_unloading_show_in_the_state(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            assert [info.state for info in engine.variants()] == ["disk", "disk"]
            loaded = await engine.load_variant("one")
            assert (loaded.state, loaded.resident_bytes, loaded.pinned) == ("ready", 10, False)
            assert engine.stats().resident_variants == 1
            pinned = await engine.pin_variant("two", True)
            assert (pinned.state, pinned.pinned) == ("ready", True)
            info, freed = await engine.unload_variant("one")
            assert (info.state, freed) == ("disk", 10)
            assert (await engine.pin_variant("two", False)).pinned is False

    asyncio.run(scenario())


def test_unloading_waits_for_requests_that_use_the_variant(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            runner_of(engine).gate.clear()
            stream = engine.submit(spec(variant=engine.resolve("one")))
            assert [info.references for info in engine.variants()] == [1, 0]
            unloading = asyncio.create_task(engine.unload_variant("one"))
            await asyncio.sleep(0)
            assert not unloading.done()
            runner_of(engine).gate.set()
            assert (await collect(stream))[-1].finish_reason is FinishReason.LENGTH
            info, freed = await unloading
            assert (info.state, freed) == ("disk", 10)

    asyncio.run(scenario())


def test_deleting_stops_new_requests_at_once_and_waits_for_old_ones(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            one = engine.resolve("one")
            runner_of(engine).gate.clear()
            stream = engine.submit(spec(variant=one, max_tokens=20))
            deleting = asyncio.create_task(engine.delete_variant("one"))
            await until(lambda: len(engine.models()) == 2)
            with pytest.raises(ModelNotFound):
                engine.resolve("one")
            assert not deleting.done()
            runner_of(engine).gate.set()
            assert (await collect(stream))[-1].finish_reason is FinishReason.LENGTH
            assert await deleting == 10 + len("one")
            with pytest.raises(ModelNotFound):
                engine.submit(spec(variant=one))

    asyncio.run(scenario())


def test_an_uploaded_version_serves_new_requests_and_can_be_rolled_back(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            before = engine.resolve("one")
            upload = engine._service.registry.uploads() / "upload"
            upload.write_text("one, better")
            info, new = await engine.put_variant("one", upload, pin=True, activate=True)
            assert (new, info.active, info.pinned) == (True, True, True)
            assert engine.resolve("one").digest == info.digest != before.digest
            old, fresh = (
                collect(engine.submit(spec(v.digest or "", v)))
                for v in (before, engine.resolve("one"))
            )
            for events in await asyncio.gather(old, fresh):
                assert events[-1].finish_reason is FinishReason.LENGTH
            assert (await engine.rollback_variant("one")).digest == before.digest
            assert engine.resolve("one") == before

    asyncio.run(scenario())


def test_an_adapter_is_converted_and_served_under_its_name(make_engine: EngineFactory) -> None:
    def convert(source: Path, out: Path) -> None:
        out.write_text(f"from {source}")

    async def scenario() -> None:
        engine = make_engine()
        async with running(engine):
            with pytest.raises(Unsupported, match="cannot convert"):
                await engine.load_adapter("peft", Path("adapter"))
            engine._service.convert_adapter = convert
            info = await engine.load_adapter("peft", Path("adapter"))
            assert (info.name, info.active) == ("peft", True)
            events = await collect(engine.submit(spec(variant=engine.resolve("peft"))))
            assert events[-1].finish_reason is FinishReason.LENGTH

    asyncio.run(scenario())
