"""Prompts with answers from a JSONL file, as token ids: the data of calibration and evaluation.

Owns: the two line formats, the place where an answer starts, errors that name file and line.
Does not know: models, what the tokens are used for.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.errors import InvalidRequest

FORMAT = 'each line is {"prompt": str, "answer": str} or {"messages": [..., assistant]}'


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A tokenised conversation whose last part is the answer, its end token included."""

    ids: tuple[int, ...]
    start: int  # index of the first answer token, at least 1
    scored: bool  # the line gave an `answer`: exact match means something

    @property
    def answer_length(self) -> int:
        """Tokens of the answer, the end token included."""
        return len(self.ids) - self.start


def read_dialogues(
    path: Path, tokenizer: Any, *, limit: int | None = None, max_tokens: int | None = None
) -> Iterator[Dialogue]:
    """Tokenise a JSONL file lazily, through the tokenizer's chat template when it has one.

    Prompt and answer are tokenised apart, because that is the boundary a server sees. What exceeds
    `max_tokens` is cut at the end; a dialogue that is all prompt by then is left out.

    Raises:
        InvalidRequest: an unreadable file, a malformed line (with its number), no line at all.
    """
    count = 0
    for number, line in _lines(path):
        if limit is not None and count >= limit:
            return
        dialogue = _tokenised(_parsed(line, f"{path}:{number}"), tokenizer)
        count += 1
        if max_tokens is None or dialogue.start < max_tokens:
            yield Dialogue(dialogue.ids[:max_tokens], dialogue.start, dialogue.scored)
    if not count:
        raise InvalidRequest(f"{path} holds no example; {FORMAT}")


def examples_in(path: Path) -> int:
    """How many examples a JSONL file holds.

    Raises:
        InvalidRequest: an unreadable file.
    """
    return sum(1 for _ in _lines(path))


@dataclass(frozen=True, slots=True)
class _Text:
    before: list[dict[str, Any]]
    answer: str
    scored: bool


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from None


def _parsed(line: str, place: str) -> _Text:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"{place}: not JSON ({error})") from None
    if not isinstance(content, Mapping):
        raise InvalidRequest(f"{place}: not an object; {FORMAT}")
    if "messages" in content:
        return _from_messages(content["messages"], place)
    prompt, answer = content.get("prompt"), content.get("answer")
    if not isinstance(prompt, str) or not isinstance(answer, str):
        raise InvalidRequest(f"{place}: prompt or answer is missing or no string; {FORMAT}")
    return _Text([{"role": "user", "content": prompt}], answer, scored=True)


def _from_messages(messages: Any, place: str) -> _Text:
    valid = isinstance(messages, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m
        for m in messages
    )
    if not valid or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InvalidRequest(f"{place}: messages must end with the assistant's; {FORMAT}")
    return _Text(list(messages[:-1]), messages[-1]["content"], scored=False)


def prompt_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """One user message as a server would tokenise it."""
    return tuple(_prompt([{"role": "user", "content": text}], tokenizer))


def _prompt(messages: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """Through the chat template when there is one."""
    if tokenizer.chat_template:
        shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = tokenizer(shown, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer("\n".join(m["content"] for m in messages))["input_ids"]
    return ids


def _tokenised(text: _Text, tokenizer: Any) -> Dialogue:
    prompt = _prompt(text.before, tokenizer)
    answer = tokenizer(text.answer, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    start = max(1, len(prompt))
    return Dialogue((*prompt, *answer, *end), start, text.scored)
