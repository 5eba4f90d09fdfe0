"""Log-probabilities in OpenAI's two forms: aligned lists (completions), objects (chat).

Owns: the forms and how tokens are shown in them. Does not know streams.
"""

from collections.abc import Sequence
from typing import Any

from tsugiki.engine.request import TokenLogprobs
from tsugiki.text.tokenizer import TextSide

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LOWEST = -9999.0  # JSON has no infinity; OpenAI's own stand-in


class TokenNames:
    """How tokens are written: as text, or as `token_id:N` on request and where the text would be
    half a UTF-8 character, which many tokens share."""

    def __init__(self, text: TextSide, as_ids: bool = False) -> None:
        self._text = text
        self._as_ids = as_ids
        self._shown: dict[int, str] = {}  # a prompt repeats its tokens

    def shown(self, token_id: int) -> str:
        """The text of one token."""
        if token_id not in self._shown:
            self._shown[token_id] = self._text.token(token_id)
        return self._shown[token_id]

    def __call__(self, token_id: int) -> str:
        """The name of one token."""
        shown = self.shown(token_id)
        return f"token_id:{token_id}" if self._as_ids or _REPLACEMENT in shown else shown


def completion_logprobs(
    entries: Sequence[tuple[int, TokenLogprobs | None]], names: TokenNames, offset: int
) -> dict[str, Any]:
    """Aligned lists over (token id, its log-probabilities; None for the first prompt token).

    `offset` is the number of characters of the choice's text before the first entry. A chosen
    token outside the top is added to its alternatives, as OpenAI does.
    """
    lists: dict[str, Any] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for token_id, entry in entries:
        lists["tokens"].append(names(token_id))
        lists["token_logprobs"].append(None if entry is None else _finite(entry.logprob))
        lists["top_logprobs"].append(None if entry is None else _alternatives(entry, names))
        lists["text_offset"].append(offset)
        offset += len(names.shown(token_id))
    return lists


def chat_logprobs(entries: Sequence[TokenLogprobs], names: TokenNames) -> dict[str, Any]:
    """`{"content": [...]}` with one object per generated token."""
    return {"content": [_chat_entry(entry, names) for entry in entries], "refusal": None}


def _alternatives(entry: TokenLogprobs, names: TokenNames) -> dict[str, float]:
    alternatives = {names(token_id): _finite(logprob) for token_id, logprob in entry.top}
    alternatives.setdefault(names(entry.token_id), _finite(entry.logprob))
    return alternatives


def _chat_entry(entry: TokenLogprobs, names: TokenNames) -> dict[str, Any]:
    top = [_chat_token(token_id, logprob, names) for token_id, logprob in entry.top]
    return {**_chat_token(entry.token_id, entry.logprob, names), "top_logprobs": top}


def _chat_token(token_id: int, logprob: float, names: TokenNames) -> dict[str, Any]:
    shown = names.shown(token_id)
    known_bytes = None if _REPLACEMENT in shown else list(shown.encode())
    return {"token": names(token_id), "logprob": _finite(logprob), "bytes": known_bytes}


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
