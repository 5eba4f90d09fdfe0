"""Token ids to text, a few at a time.

Owns: `Detokenizer` and its two kinds. Does not know: stop strings, requests.
"""

from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from typing import Protocol

from tsugiki.text.tokenizer import TextSide

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Incremental decoding: the pieces joined equal `text.decode(all ids)`, for any split."""

    def add(self, ids: Sequence[int]) -> str:
        """The newly certain text: never half a UTF-8 character."""

    def flush(self) -> str:
        """What was held back, at the end of a request."""


def detokenizer(text: TextSide) -> Detokenizer:
    """The quickest that this text side allows."""
    if text.token_bytes is not None:
        return ByteDetokenizer(text.token_bytes)
    return WindowDetokenizer(text)


class ByteDetokenizer:
    """For byte-level BPE: the bytes of tokens, joined and read as UTF-8."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        self._bytes_of = token_bytes.__getitem__
        self._rest = b""  # the beginning of a character

    def add(self, ids: Sequence[int]) -> str:
        """See Detokenizer.add."""
        data = self._rest + b"".join(map(self._bytes_of, ids))
        text, used = utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        return text

    def flush(self) -> str:
        """See Detokenizer.flush."""
        return utf_8_decode(self._rest, "replace", True)[0]


class WindowDetokenizer:
    """For every tokenizer.

    Only a window of the last tokens is decoded again: it starts at the last place where the text
    was certain to end on a character, so that what precedes (leading spaces of SentencePiece,
    bytes of one character spread over tokens) still shapes what follows.
    """

    def __init__(self, text: TextSide) -> None:
        self._text = text
        self._window: list[int] = []
        self._context = 0  # tokens at the window's start that are emitted already
        self._emitted = 0  # characters of the window's text that are emitted already
        self._in_bytes = False  # the text so far ends in a run of byte tokens

    def add(self, ids: Sequence[int]) -> str:
        """See Detokenizer.add."""
        self._window.extend(ids)
        for token_id in ids:
            self._follow_bytes(token_id)
        if not ids or self._in_bytes:
            return ""
        text = self._text.decode(self._window)
        if text.endswith(_REPLACEMENT):
            # Only the last one may still become a character, when its other bytes arrive.
            return self._take(text[:-1])
        piece = self._take(text)
        if piece:
            self._slide()
        return piece

    def flush(self) -> str:
        """See Detokenizer.flush."""
        return self._take(self._text.decode(self._window))

    def _follow_bytes(self, token_id: int) -> None:
        """One invalid byte turns a whole run of byte tokens into replacement characters, so a run
        is certain only when other text follows it."""
        if token_id in self._text.byte_fallback_ids:
            self._in_bytes = True
        elif self._in_bytes and self._text.decode([token_id]):
            self._in_bytes = False

    def _take(self, text: str) -> str:
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece

    def _slide(self) -> None:
        """Keep the tokens since the last certain end as context, drop those before."""
        context = self._window[self._context :]
        self._window = context
        self._context = len(context)
        self._emitted = len(self._text.decode(context))
