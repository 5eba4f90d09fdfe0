"""An operator's file that would replace a version which answers has to answer its probe first."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_local_engine import running, until
from tests.engine.test_probe import answer, probed
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.request import FinishReason

EngineFactory = Callable[..., LocalEngine]


def files(engine: LocalEngine) -> dict[str, str]:
    """State by digest of what is listed; a file that is not served has no digest."""
    return {info.digest: info.state for info in engine.variants() if info.name == "bank"}


@pytest.mark.parametrize("restart", [False, True], ids=["while serving", "at the next start"])
def test_an_operators_file_that_fails_leaves_the_version_before_it_in_service(
    make_engine: EngineFactory, tmp_path: Path, restart: bool
) -> None:
    file = tmp_path / "variants" / "bank.safetensors"
    file.parent.mkdir()

    async def replaced_by(text: str, engine: LocalEngine) -> None:
        file.write_text(text)
        for _ in range(2):
            await engine._watch.look()

    async def first(engine: LocalEngine) -> str:
        good = str(engine.resolve("bank").digest)
        if not restart:
            await second(engine, good)
        return good

    async def second(engine: LocalEngine, good: str) -> None:
        if restart:
            assert engine.resolve("bank").digest == good
            await until(lambda: "" in files(engine))
        else:
            await replaced_by(probed("worse", wrong_at=1), engine)
        assert files(engine)[""] == "failed"
        (failed,) = [info for info in engine.variants() if not info.digest]
        assert "fails its own probe: token 1 of 3" in str(failed.error)
        assert await answer(engine, "bank") is FinishReason.LENGTH
        assert engine.resolve("bank").digest == good
        await until(lambda: engine._view.residency.snapshot().keys() == {good})
        await replaced_by(probed("better"), engine)
        better = engine.resolve("bank").digest
        assert better != good
        assert files(engine).keys() == {good, better}

    async def scenario(
        play: Callable[..., Coroutine[Any, Any, str | None]], *known: str
    ) -> str | None:
        async with running(make_engine(variants=())) as engine:
            return await play(engine, *known)

    file.write_text(probed("good"))
    good = str(asyncio.run(scenario(first)))
    if restart:
        file.write_text(probed("worse", wrong_at=1))
        asyncio.run(scenario(second, good))


def test_an_operators_file_waits_while_nobody_can_say_whether_it_answers(
    make_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "variants" / "bank.safetensors"
    file.parent.mkdir()
    file.write_text(probed("good"))

    async def scenario() -> None:
        async with running(make_engine(variants=())) as engine:
            good = engine.resolve("bank").digest
            file.write_text(probed("better"))
            with monkeypatch.context() as patched:
                patched.setattr(engine, "_draining", True)
                for _ in range(3):
                    await engine._watch.look()
                assert files(engine).keys() == {good}
            await engine._watch.look()
            assert engine.resolve("bank").digest not in (good, None)

    asyncio.run(scenario())
