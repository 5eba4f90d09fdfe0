"""The wire protocol as pure functions: calls are built here, answers are read here.

Owns: paths, bodies, server-sent events. Does not know sockets, sync or async.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from tsugiki_client.errors import TsugikiClientError, error_from
from tsugiki_client.results import (
    HistoryEntry,
    Model,
    Pushed,
    PushOptions,
    Reply,
    Variant,
    VariantEvent,
)

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
CHUNK_BYTES = 2**20
INCOMPLETE = 308  # the status of an upload that is not whole


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]  # case-insensitive, as httpx gives them
    body: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One HTTP call and how its answer is read."""

    method: str
    path: str
    parse: Callable[[Answer], T]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def chat(model: str, messages: Messages, options: Mapping[str, Any]) -> Call[Reply]:
    """One conversation turn."""
    body = {"model": model, "messages": list(messages), **options}
    return Call("POST", "/v1/chat/completions", _reply(_chat_text), json=body)


def complete(model: str, prompt: str | Sequence[Any], options: Mapping[str, Any]) -> Call[Reply]:
    """One continuation."""
    body = {"model": model, "prompt": prompt, **options}
    return Call("POST", "/v1/completions", _reply(_completion_text), json=body)


def streamed(call: Call[Reply]) -> Call[Reply]:
    """The same call, answered as server-sent events."""
    return Call(call.method, call.path, call.parse, json={**(call.json or {}), "stream": True})


def models() -> Call[list[Model]]:
    """The base first, then the variants."""
    return Call("GET", "/v1/models", lambda answer: _items(answer, Model))


def variants() -> Call[list[Variant]]:
    """Every version of every variant."""
    return Call("GET", "/v1/variants", lambda answer: _items(answer, Variant))


def variant(name: str) -> Call[Variant]:
    """The active version of one variant."""
    return Call("GET", _variant_path(name), lambda answer: _pick(_json(answer), Variant))


def push_part(
    name: str, size: int, start: int | None, *, upload_id: str, options: PushOptions
) -> Call[Pushed | int]:
    """The bytes from `start` on of an upload of `size` bytes; None asks how far it is.

    Answers the version and whether it is new, or how many bytes the server has.
    """
    span = "*" if start is None else f"{start}-{size - 1}"
    headers = {"X-Upload-Id": upload_id, "Content-Range": f"bytes {span}/{size}"}
    if start is not None:
        headers["Content-Type"] = "application/octet-stream"
        headers["Content-Length"] = str(size - start)
    if options.if_absent:
        headers["If-None-Match"] = "*"
    if options.signature is not None:
        headers["X-Tsugiki-Signature"] = options.signature
    return Call(
        "PUT",
        _variant_path(name),
        _pushed,
        params={"pin": str(options.pin).lower(), "activate": str(options.activate).lower()},
        headers=headers,
    )


def _pushed(answer: Answer) -> Pushed | int:
    body = _json(answer)
    if answer.status == INCOMPLETE:
        return int(body["received"])
    return _pick(body, Variant), answer.status == 201


def delete(name: str, digest: str | None = None) -> Call[int]:
    """Remove a variant, or one version of it; answers the bytes freed."""
    return Call(
        "DELETE",
        _variant_path(name),
        lambda answer: int(_json(answer)["bytes_freed"]),
        params=None if digest is None else {"digest": digest},
    )


def activate(name: str, digest: str) -> Call[Variant]:
    """Make a version the one that the bare name means."""
    return operate(name, "activate", {"digest": digest})


def canary(name: str, digest: str, percent: float) -> Call[Variant]:
    """Answer so many percent of the users with a version; 0 ends it."""
    return operate(name, "canary", {"digest": digest, "percent": percent})


def history(name: str) -> Call[list[HistoryEntry]]:
    """What was done to a name, oldest first."""
    path = f"{_variant_path(name)}/history"
    return Call("GET", path, lambda answer: _items(answer, HistoryEntry))


def events(after: int | None) -> Call[None]:
    """The stream of changes: from now on, or after a sequence number."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    return Call("GET", "/v1/variants/events", lambda answer: None, headers=headers)


def variant_event(line: str) -> VariantEvent | None:
    """The event in one line of that stream; None for what carries none."""
    event = stream_event(line)
    return None if event is None else _pick(event, VariantEvent)


def operate(name: str, operation: str, body: Mapping[str, Any] | None = None) -> Call[Variant]:
    """load, unload, pin, unpin, rollback, activate or canary."""
    path = f"{_variant_path(name)}/{operation}"
    return Call("POST", path, lambda answer: _pick(_json(answer), Variant), json=body)


def health() -> Call[dict[str, Any]]:
    """How the server computes."""
    return Call("GET", "/health", _json)


def raise_for_error(answer: Answer) -> None:
    """Raises what an answer that is not 2xx, and not the progress of an upload, stands for."""
    if 200 <= answer.status < 300 or answer.status == INCOMPLETE:
        return
    retry_after = answer.headers.get("retry-after")
    try:
        body = json.loads(answer.body)
    except ValueError:
        body = None
    raise error_from(
        body,
        status=answer.status,
        retry_after=float(retry_after) if retry_after and retry_after.isdigit() else None,
    )


def stream_text(lines: Iterable[str]) -> Iterator[str]:
    """The text pieces of the first choice in an event stream.

    Raises:
        TsugikiClientError: the stream's error event.
    """
    for line in lines:
        event = stream_event(line)
        if event is not None and (piece := event_text(event)):
            yield piece


def stream_event(line: str) -> dict[str, Any] | None:
    """The chunk in one line of an event stream; None for what carries none.

    Raises:
        TsugikiClientError: the line is an error event.
    """
    if not line.startswith("data:"):
        return None
    payload = line[5:].strip()
    if payload == "[DONE]":
        return None
    event: dict[str, Any] = json.loads(payload)
    if "error" in event:
        raise error_from(event)
    return event


def event_text(event: Mapping[str, Any]) -> str:
    """The text that a chunk adds to the first choice."""
    for choice in event["choices"]:
        if choice["index"] == 0:
            return str(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
    return ""


def _reply(text_of: Callable[[Mapping[str, Any]], str]) -> Callable[[Answer], Reply]:
    def parse(answer: Answer) -> Reply:
        raw = _json(answer)
        choice = raw["choices"][0]
        return Reply(
            text=text_of(choice),
            finish_reason=choice["finish_reason"],
            usage=raw["usage"],
            variant=answer.headers.get("x-tsugiki-variant"),
            request_id=answer.headers.get("x-request-id"),
            raw=raw,
        )

    return parse


def _chat_text(choice: Mapping[str, Any]) -> str:
    return str(choice["message"]["content"])


def _completion_text(choice: Mapping[str, Any]) -> str:
    return str(choice["text"])


def _json(answer: Answer) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(answer.body)
    except ValueError as error:
        raise TsugikiClientError(
            f"this is no tsugiki server: it answered {answer.body[:80]!r}", status=answer.status
        ) from error
    return body


def _items(answer: Answer, kind: type[T]) -> list[T]:
    return [_pick(item, kind) for item in _json(answer)["data"]]


def _pick(values: Mapping[str, Any], kind: type[T]) -> T:
    """The fields of `kind` out of a JSON object; servers may send more."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: value for name, value in values.items() if name in names})


def _variant_path(name: str) -> str:
    return f"/v1/variants/{quote(name, safe='')}"
