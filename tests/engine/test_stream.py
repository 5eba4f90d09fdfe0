"""From token ids to text, on the event loop's side."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.events import merged
from tsugiki.engine.mailbox import Mailbox
from tsugiki.engine.request import FinishReason, SamplingParams, TokenLogprobs, VariantRef
from tsugiki.engine.step_event import StepEvent
from tsugiki.engine.stream import EventStream, OpenRequest
from tsugiki.text.huggingface import HfTextSide, load_text_side


@pytest.fixture(scope="module")
def text(tiny_base: Path) -> HfTextSide:
    return load_text_side(tiny_base)


class Opened(OpenRequest):
    """An open request and what it has told."""

    def __init__(self, spec: GenerationSpec, text: HfTextSide) -> None:
        self.events: list[GenerationEvent] = []
        super().__init__(spec, text, self.events.append)


def opened(text: HfTextSide, **changes: Any) -> Opened:
    own = ("stop", "include_stop", "final_only")
    fields = {name: changes.pop(name) for name in own if name in changes}
    params = SamplingParams(**changes)
    return Opened(GenerationSpec("r", VariantRef("base", None), (3,), params, **fields), text)


def feed(request: Opened, ids: Sequence[int], end: FinishReason | None = None) -> list[bool]:
    """One token a step, a second apart; the last one with the engine's reason."""
    return [
        request.feed(
            StepEvent("r", (token,), finish_reason=end if number == len(ids) - 1 else None),
            float(number),
        )
        for number, token in enumerate(ids)
    ]


def taken(request: Opened) -> GenerationEvent:
    """All of it, as a reader gets it that was away meanwhile."""
    return merged(request.events)


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
    async def scenario() -> None:
        events: Mailbox[GenerationEvent] = Mailbox()
        stream = EventStream("r", events, lambda _: None)
        events.put(GenerationEvent("a", (5,)))
        events.put(GenerationEvent("b", (6,), finish_reason=FinishReason.LENGTH))
        event = await anext(stream)
        assert (event.text, event.finish_reason) == ("ab", FinishReason.LENGTH)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(scenario())


def test_who_wants_only_the_end_is_told_all_of_it_once(text: HfTextSide) -> None:
    ids = text.encode("héllo 次 wörld", add_special_tokens=False)
    request, stepwise = opened(text, final_only=True), opened(text)
    feed(request, ids, FinishReason.LENGTH)
    feed(stepwise, ids, FinishReason.LENGTH)
    assert request.events == [merged(stepwise.events)]
    assert request.events[0].gaps == (1.0,) * (len(ids) - 1)


def test_a_stop_string_ends_an_answer_that_is_told_once(text: HfTextSide) -> None:
    ids = text.encode("one END two", add_special_tokens=False)
    request = opened(text, final_only=True, stop=("END",), max_tokens=50)
    assert any(feed(request, ids[: len(text.encode("one END", add_special_tokens=False))]))
    assert [(e.text, e.stop_reason) for e in request.events] == [("one ", "END")]


@pytest.mark.parametrize("min_tokens", [0, 3])
def test_a_stop_string_within_a_step_of_several_tokens_ends_the_answer_there(
    text: HfTextSide, min_tokens: int
) -> None:
    ids = text.encode("a b a b c d e", add_special_tokens=False)
    options: dict[str, Any] = {"stop": ("a b",), "min_tokens": min_tokens, "logprobs": 0}
    one, several = (opened(text, max_tokens=50, **options) for _ in range(2))
    for token in ids:
        if one.feed(StepEvent("r", (token,), (TokenLogprobs(token, 0.0, 1, ()),)), 0.0):
            break
    logprobs = tuple(TokenLogprobs(token, 0.0, 1, ()) for token in ids)
    step = StepEvent("r", tuple(ids), logprobs, finish_reason=FinishReason.LENGTH)
    several.feed(step, 0.0)
    assert several.events == [replace(merged(one.events), gaps=())]  # a step has no gaps in it
    assert several.events[0].completion_tokens < len(ids)
