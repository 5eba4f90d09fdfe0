"""Reads an OpenAI event stream: when tokens came, how many, whether it ended well.

Owns: the events of /v1/completions and /v1/chat/completions. Does not know connections.
"""

import json
from typing import Any


class ServerSaidError(Exception):
    """The server refused, or ended the stream with an error; the text is the error's kind."""


class EventReader:
    """Fed with the bytes of one answer as they come.

    Attributes:
        moments: when each piece with tokens came, perf_counter seconds.
        done: `[DONE]` came.
        prompt_tokens: as the server counted them, 0 if it did not say; `cached_tokens` likewise.
    """

    def __init__(self, leave_after: int | None = None) -> None:
        self.moments: list[float] = []
        self.done = False
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._leave_after = leave_after
        self._generated: int | None = None
        self._rest = b""

    @property
    def left(self) -> bool:
        """Whether `leave_after` pieces came."""
        return self._leave_after is not None and len(self.moments) >= self._leave_after

    @property
    def tokens(self) -> int:
        """Generated tokens by the server's `usage`; without it, one for each piece."""
        return len(self.moments) if self._generated is None else self._generated

    def feed(self, piece: bytes, now: float) -> None:
        """Read what came at `now`.

        Raises:
            ServerSaidError: an event is an error.
        """
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(payload.decode())  # of bytes it would guess the encoding first
        except ValueError:
            raise ServerSaidError("stream error: an event is not JSON") from None
        if error := event.get("error"):
            raise ServerSaidError(f"stream error: {error.get('code') or error.get('type')}")
        if any(_carries_token(choice) for choice in event.get("choices", ())):
            self.moments.append(now)
        if usage := event.get("usage"):
            self._read_usage(usage)

    def _read_usage(self, usage: dict[str, Any]) -> None:
        self._generated = usage["completion_tokens"]
        self.prompt_tokens = usage["prompt_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens") or 0


def _carries_token(choice: dict[str, Any]) -> bool:
    """Whether a piece holds tokens, perhaps without text (half a character).

    Not so: the event that opens a chat with the role, and one that only says why it ended.
    """
    delta = choice.get("delta")
    text = choice.get("text") if delta is None else _delta_text(delta)
    opens = delta is not None and "role" in delta
    return bool(text) or not (opens or choice.get("finish_reason"))


def _delta_text(delta: dict[str, Any]) -> Any:
    return (
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("tool_calls")
    )
