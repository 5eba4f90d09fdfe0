"""A version that has a probe answers it before it answers anybody, whatever way it comes in."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.conftest import next_token
from tests.engine.test_local_engine import collect, runner_of, running, spec, until
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.probe import difference, replay
from tsugiki.engine.request import FinishReason, VariantRef
from tsugiki.errors import Conflict, Overloaded, ProbeFailed, Unavailable

EngineFactory = Callable[..., LocalEngine]
PROMPT = (20, 21)
ANY_DIGEST = "sha256:" + "0" * 64


def probed(name: str, *, wrong_at: int | None = None) -> str:
    """The text of a file (see header_of) whose probe is right, or wrong at one place."""
    known, greedy = list(PROMPT), []
    for _ in range(3):
        greedy.append(next_token([*known, *greedy], ANY_DIGEST))
    if wrong_at is not None:
        greedy[wrong_at] += 1
    return f"{name}|{','.join(map(str, PROMPT))}>{','.join(map(str, greedy))}"


async def put(engine: LocalEngine, name: str, text: str, *, activate: bool = True) -> str:
    path = engine.upload_area() / "upload"
    path.write_text(text)
    info, _ = await engine.put_variant(name, path, pin=False, activate=activate)
    return info.digest


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def probes_asked(engine: LocalEngine) -> int:
    """Replays that the model has seen."""
    seen = {r for batch in runner_of(engine).batches for r in batch if r.startswith("probe-")}
    return len(seen)


async def answer(engine: LocalEngine, model: str, request_id: str = "r") -> FinishReason | None:
    events = await collect(engine.submit(spec(request_id, engine.resolve(model), max_tokens=2)))
    return events[-1].finish_reason


def state(engine: LocalEngine, digest: str) -> str:
    return next(info.state for info in engine.variants() if info.digest == digest)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((1, 2, 3), None),
        ((1, 5, 3), "token 1 of 3 is 5, expected 2"),
        ((1, 2), "gave 2 tokens, expected 3"),
    ],
)
def test_the_first_difference_is_named(found: tuple[int, ...], words: str | None) -> None:
    reason = difference((1, 2, 3), found)
    assert reason is None if words is None else words in str(reason)


def test_an_upload_that_answers_its_probe_is_activated(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            digest = await put(engine, "new", probed("n"))
            assert engine.resolve("new").digest == digest
            assert probes_asked(engine) == 1
            assert await answer(engine, "new") is FinishReason.LENGTH
            await put(engine, "new", probed("n"))
            assert probes_asked(engine) == 1, "a version passes once"

    asyncio.run(scenario())


def test_an_upload_that_fails_its_probe_leaves_nothing_behind(
    make_engine: EngineFactory, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            good = await put(engine, "bank", probed("b"))
            before = engine.variants(), tree(tmp_path / "variants")
            wrong = probed("w", wrong_at=1)
            expected = wrong.split(">")[1].split(",")[1]
            with pytest.raises(ProbeFailed, match=rf"token 1 of 3 is \d+, expected {expected}"):
                await put(engine, "bank", wrong)
            assert (engine.variants(), tree(tmp_path / "variants")) == before
            assert engine.resolve("bank").digest == good
            assert engine._view.residency.snapshot().keys() == {good}
            assert await answer(engine, "bank") is FinishReason.LENGTH

    asyncio.run(scenario())


def test_an_upload_that_is_not_activated_is_asked_when_it_is(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            good = await put(engine, "bank", probed("b"))
            bad = await put(engine, "bank", probed("w", wrong_at=0), activate=False)
            assert probes_asked(engine) == 1
            for attempt in (
                lambda: engine.activate_variant("bank", bad),
                lambda: engine.canary_variant("bank", bad, 10.0),
                lambda: engine.load_variant(f"bank@{bad}"),
                lambda: engine.pin_variant(f"bank@{bad}", True),
            ):
                with pytest.raises(ProbeFailed, match="token 0 of 3"):
                    await attempt()
                await until(lambda: state(engine, bad) == "failed")
            assert engine.resolve("bank").digest == good
            assert state(engine, good) == "ready"
            assert all(info.canary_percent == 0 for info in engine.variants())

    asyncio.run(scenario())


def test_a_rollback_to_what_fails_here_changes_nothing(make_engine: EngineFactory) -> None:
    """The kernels are others after a restart, say: what passed once is asked again."""

    async def first() -> tuple[str, str]:
        async with running(make_engine(variants=())) as engine:
            return await put(engine, "bank", probed("a")), await put(engine, "bank", probed("b"))

    async def second(old: str, new: str) -> None:
        async with running(make_engine(variants=())) as engine:
            runner_of(engine).wrong.add(old)
            with pytest.raises(ProbeFailed, match="token 0 of 3"):
                await engine.rollback_variant("bank")
            assert engine.resolve("bank").digest == new
            runner_of(engine).wrong.clear()
            assert (await engine.rollback_variant("bank")).digest == old
            with pytest.raises(Conflict, match="earlier version"):
                await engine.rollback_variant("bank")

    asyncio.run(second(*asyncio.run(first())))


def test_an_operators_file_is_asked_by_its_first_request(
    make_engine: EngineFactory, tmp_path: Path
) -> None:
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "good.safetensors").write_text(probed("good"))

    async def scenario() -> None:
        async with running(make_engine(variants=("plain",))) as engine:
            answers = [answer(engine, "good", f"r{i}") for i in range(3)]
            assert await asyncio.gather(*answers) == [FinishReason.LENGTH] * 3
            assert await answer(engine, "plain") is FinishReason.LENGTH
            assert probes_asked(engine) == 1

    asyncio.run(scenario())


def test_an_operators_file_that_fails_is_out_of_service(
    make_engine: EngineFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "bad.safetensors").write_text(probed("bad", wrong_at=2))

    async def scenario() -> None:
        async with running(make_engine()) as engine:
            ref = engine.resolve("bad")
            events = await collect(engine.submit(spec("a", ref)))
            assert events[-1].finish_reason is FinishReason.ERROR
            assert "token 2 of 3" in str(events[-1].error)
            assert sum(len(event.token_ids) for event in events) == 0
            await until(lambda: state(engine, str(ref.digest)) == "failed")
            with pytest.raises(ProbeFailed, match="token 2 of 3"):
                engine.submit(spec("b", ref))
            assert await answer(engine, "one") is FinishReason.LENGTH
            assert probes_asked(engine) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "variant 'bad' (sha256:" in line
    assert "fails its own probe: token 2 of 3" in line


def test_a_client_that_leaves_while_the_probe_is_asked_takes_nobody_along(
    make_engine: EngineFactory, tmp_path: Path
) -> None:
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "good.safetensors").write_text(probed("good"))

    async def scenario() -> None:
        async with running(make_engine()) as engine:
            runner_of(engine).gate.clear()
            ref = engine.resolve("good")
            leaving = engine.submit(spec("a", ref))
            staying = asyncio.create_task(answer(engine, "good", "b"))
            await asyncio.sleep(0)
            await leaving.aclose()
            runner_of(engine).gate.set()
            assert await staying is FinishReason.LENGTH
            assert "a" not in {r for batch in runner_of(engine).batches for r in batch}

    asyncio.run(scenario())


def test_a_full_queue_and_a_draining_server_say_so_and_change_nothing(
    make_engine: EngineFactory, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(make_engine(seqs=1, queue=0)) as engine:
            before = engine.variants(), tree(tmp_path / "variants")
            runner_of(engine).gate.clear()
            busy = engine.submit(spec("busy"))
            refused = asyncio.create_task(put(engine, "new", probed("n")))
            await asyncio.sleep(0)
            await until(lambda: not (engine.upload_area() / "upload").exists())
            runner_of(engine).gate.set()
            with pytest.raises(Overloaded):
                await refused
            await collect(busy)
            engine._draining = True
            with pytest.raises(Unavailable, match="shutting down"):
                await put(engine, "new", probed("n"))
            engine._draining = False
            assert (engine.variants(), tree(tmp_path / "variants")) == before
            await put(engine, "new", probed("n"))

    asyncio.run(scenario())


def test_an_engine_that_is_too_busy_is_waited_for_no_longer_than_patience_lasts(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            runner_of(engine).gate.clear()
            probe = {"prompt_ids": [20, 21], "greedy_ids": [5]}
            with pytest.raises(Unavailable, match=r"'one' within 0.01 seconds; nothing was chan"):
                await replay(engine.submit, engine.resolve("one"), probe, patience=0.01)
            assert not len(engine._open)

    asyncio.run(scenario())


def test_a_probe_longer_than_the_context_is_a_failure_that_says_so(
    make_engine: EngineFactory,
) -> None:
    async def scenario() -> None:
        async with running(make_engine(blocks=2)) as engine:
            probe = {"prompt_ids": [20] * 6, "greedy_ids": [5] * 3}
            reason = await replay(engine.submit, VariantRef("base", None), probe)
            assert "cannot be asked here: 6 prompt tokens + max_tokens 3" in str(reason)

    asyncio.run(scenario())


def test_a_variant_that_raises_fails_its_probe(make_engine: EngineFactory) -> None:
    async def scenario() -> None:
        async with running(make_engine()) as engine:
            digest = await put(engine, "new", probed("n"), activate=False)
            runner_of(engine).raising.add(digest)
            with pytest.raises(ProbeFailed, match=r"it raised an error: .*no kernel for"):
                await engine.activate_variant("new", digest)

    asyncio.run(scenario())
