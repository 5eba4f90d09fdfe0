"""From token ids to text, on the event loop's side."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.core import StepEvent
from tsugiki.engine.request import FinishReason, SamplingParams, VariantRef
from tsugiki.engine.stream import OpenRequest
from tsugiki.text.huggingface import HfTextSide, load_text_side


@pytest.fixture(scope="module")
def text(tiny_base: Path) -> HfTextSide:
    return load_text_side(tiny_base)


def opened(text: HfTextSide, **changes: Any) -> OpenRequest:
    stop, include = changes.pop("stop", ()), changes.pop("include_stop", False)
    params = SamplingParams(**changes)
    return OpenRequest(
        GenerationSpec("r", VariantRef("base", None), (3,), params, stop, include), text
    )


def feed(request: OpenRequest, ids: Sequence[int], end: FinishReason | None = None) -> list[bool]:
    """One token a step; the last one with the engine's reason."""
    return [
        request.feed(StepEvent("r", (token,), finish_reason=end if last else None))
        for token, last in zip(ids, [*[False] * (len(ids) - 1), True], strict=True)
    ]


def taken(request: OpenRequest) -> GenerationEvent:
    return asyncio.run(request.next())


def test_characters_split_over_tokens_come_out_whole(text: HfTextSide) -> None:
    ids = text.encode("Ünïcödé — 次木 🌱 ok", add_special_tokens=False)
    request = opened(text)
    feed(request, ids, FinishReason.LENGTH)
    event = taken(request)
    assert event.text == "Ünïcödé — 次木 🌱 ok"
    assert event.token_ids == tuple(ids)


def test_the_stop_token_is_counted_but_not_shown(text: HfTextSide) -> None:
    hello = text.encode("hello", add_special_tokens=False)
    stop = text.encode("!", add_special_tokens=False)[0]
    request = opened(text)
    feed(request, [*hello, stop], FinishReason.STOP)
    event = taken(request)
    assert (event.text, event.stop_reason) == ("hello", stop)
    assert event.completion_tokens == len(hello) + 1


def test_an_eos_token_gives_no_stop_reason(text: HfTextSide) -> None:
    request = opened(text)
    feed(request, [min(text.eos_token_ids)], FinishReason.STOP)
    event = taken(request)
    assert (event.finish_reason, event.stop_reason) == (FinishReason.STOP, None)


def test_text_that_might_begin_a_stop_string_is_shown_when_it_does_not(text: HfTextSide) -> None:
    ids = text.encode("abc EN", add_special_tokens=False)
    request = opened(text, stop=("END",))
    assert not any(feed(request, ids, FinishReason.LENGTH))
    assert taken(request).text == "abc EN"


def test_a_stop_string_tells_the_engine_to_stop_once(text: HfTextSide) -> None:
    ids = text.encode("one END", add_special_tokens=False)
    request = opened(text, stop=("END",), max_tokens=50)
    told = feed(request, ids)
    assert told == [False] * (len(ids) - 1) + [True]
    event = taken(request)
    assert (event.text, event.finish_reason, event.stop_reason) == (
        "one ",
        FinishReason.STOP,
        "END",
    )


def test_stop_strings_do_not_count_before_min_tokens(text: HfTextSide) -> None:
    ids = text.encode("a a a a a a", add_special_tokens=False)
    early = feed(opened(text, stop=("a a",), max_tokens=50), ids).index(True)
    late = feed(opened(text, stop=("a a",), min_tokens=6, max_tokens=50), ids).index(True)
    assert early < 6 <= late


def test_nothing_comes_after_the_terminal_event(text: HfTextSide) -> None:
    request = opened(text)
    feed(request, [5, 6], FinishReason.LENGTH)
    assert taken(request).finish_reason is FinishReason.LENGTH
    with pytest.raises(StopAsyncIteration):
        taken(request)
