"""Prompts to token ids, off the event loop when they are long, and refused early when too long.

Owns: the forms of a prompt and the context limit. Does not know the engine or sampling.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tsugiki.api.sampling import check_token_ids
from tsugiki.errors import ContextTooLong, InvalidRequest
from tsugiki.text.tokenizer import TextSide

INLINE_CHARACTERS = 4096  # tokenising this much takes less than handing it to a thread


def as_batch(prompt: str | list[Any]) -> list[str | list[int]]:
    """One prompt or several, text or token ids, as a list of prompts."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def encode_prompt(
    prompt: str | list[int], text: TextSide, limit: int, *, add_special_tokens: bool = True
) -> tuple[int, ...]:
    """Token ids of a prompt of fewer than `limit` tokens.

    Raises:
        ContextTooLong: it cannot fit.
        InvalidRequest: no tokens at all, or ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        _refuse_hopeless(len(prompt), text, limit)
        ids = await _off_loop(
            len(prompt), lambda: text.encode(prompt, add_special_tokens=add_special_tokens)
        )
    else:
        ids = prompt
    return _checked(ids, text, limit)


async def encode_chat(
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    text: TextSide,
    limit: int,
) -> tuple[int, ...]:
    """Token ids of a conversation of fewer than `limit` tokens.

    Raises:
        ContextTooLong: it cannot fit.
        InvalidRequest: the model has no chat template, or it refuses the messages.
    """
    characters = _characters([*messages, variables])
    _refuse_hopeless(characters, text, limit)
    ids = await _off_loop(characters, lambda: text.chat(messages, **variables))
    return _checked(ids, text, limit)


def room_for_answer(prompt: Sequence[int], asked: int | None, limit: int, default: int) -> int:
    """max_tokens of a request: what was asked for, if it fits beside the prompt.

    Raises:
        ContextTooLong: prompt and max_tokens together are over the limit.
    """
    room = limit - len(prompt)
    if asked is not None and asked > room:
        raise ContextTooLong(
            f"this model's context is {limit} tokens; the prompt has {len(prompt)} and max_tokens "
            f"asks for {asked}; ask for at most {room}",
            param="max_tokens",
        )
    return min(default, room) if asked is None else asked


def _refuse_hopeless(characters: int, text: TextSide, limit: int) -> None:
    """Without tokenising: even if every token were the longest of the vocabulary."""
    if characters > limit * text.longest_token:
        raise ContextTooLong(
            f"this model's context is {limit} tokens; a prompt of {characters} characters is over "
            "it however it is tokenised; shorten it",
            param="prompt",
        )


def _characters(value: Any) -> int:
    """Of all strings in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return _characters(list(value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


async def _off_loop(characters: int, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if characters <= INLINE_CHARACTERS else await asyncio.to_thread(encode)


def _checked(ids: list[int], text: TextSide, limit: int) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest("prompt: it has no tokens; send some text", param="prompt")
    check_token_ids(ids, text, "prompt")
    if len(ids) >= limit:
        raise ContextTooLong(
            f"this model's context is {limit} tokens; the prompt has {len(ids)} and leaves no room "
            "for an answer; shorten it",
            param="prompt",
        )
    return tuple(ids)
