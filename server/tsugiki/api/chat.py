"""POST /v1/chat/completions.

Owns: the chat form of requests and answers. Does not know how sequences are run.
"""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from tsugiki.api import sse
from tsugiki.api.auth import AccessDep
from tsugiki.api.generation import (
    Generation,
    Output,
    begin,
    collect,
    open_generation,
    stream,
    with_sequences,
)
from tsugiki.api.logprobs import TokenNames, chat_logprobs
from tsugiki.api.prompts import encode_chat, room_for_answer
from tsugiki.api.responses import ChatCompletion, documented_errors
from tsugiki.api.sampling import sampling_params
from tsugiki.api.schemas import ChatBody
from tsugiki.api.sequences import Step
from tsugiki.api.services import ServicesDep
from tsugiki.engine.client import GenerationEvent
from tsugiki.engine.request import TokenLogprobs

router = APIRouter(tags=["inference"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **documented_errors(404, 429),
    },
)
async def create_chat_completion(
    request: Request, body: ChatBody, services: ServicesDep, access: AccessDep
) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    generation = open_generation(request, services, access, body, kind="chatcmpl")
    limit = services.engine.max_model_len()
    messages = [message.for_template() for message in body.messages]
    prompt = await encode_chat(messages, body.chat_template_kwargs or {}, generation.text, limit)
    asked = body.max_completion_tokens or body.max_tokens
    params = sampling_params(
        body,
        generation.text,
        max_tokens=room_for_answer(prompt, asked, limit, default=limit),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    generation = with_sequences(generation, [(prompt, params)])
    sequences = begin(request, services, generation)
    writer = _ChatWriter(generation, body)
    if body.stream:
        return await stream(generation, sequences, writer)
    return JSONResponse(writer.whole(await collect(generation, sequences)))


class _ChatWriter:
    """Answers of one generation, as chunks or whole."""

    def __init__(self, generation: Generation, body: ChatBody) -> None:
        self._generation = generation
        self._body = body
        self._names = TokenNames(generation.text, bool(body.return_tokens_as_token_ids))
        self._opened: set[int] = set()
        options = body.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        varied = self._usage_always or body.logprobs or body.return_token_ids
        self._only_text = not varied
        self._text_events = sse.TextEvents(self._text_chunk)

    def whole(self, outputs: list[Output]) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": output.text, "refusal": None},
                "logprobs": self._logprobs(output.logprobs),
                "finish_reason": output.finish_reason,
                "stop_reason": output.stop_reason,
            }
            | self._generation.shown_ids(output.token_ids)
            for index, output in enumerate(outputs)
        ]
        answer = self._generation.envelope("chat.completion", choices)
        return {**answer, "usage": self._generation.usage()}

    def step(self, step: Step) -> bytes:
        """The events of one step."""
        return b"".join([self._written(index, event) for index, event in step])

    def closing(self) -> bytes:
        """The event with the usage, if it was asked for."""
        if not self._usage_at_end:
            return b""
        chunk = self._generation.envelope("chat.completion.chunk", [])
        return sse.data({**chunk, "usage": self._generation.usage()})

    def _written(self, index: int, event: GenerationEvent) -> bytes:
        if self._only_text and event.text and not event.finish_reason and index in self._opened:
            return self._text_events(index, event.text)
        return b"".join(map(sse.data, self._chunks(index, event)))

    def _text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"content": text}, GenerationEvent(text, ()))

    def _chunks(self, index: int, event: GenerationEvent) -> list[dict[str, Any]]:
        chunks = []
        if index not in self._opened:
            self._opened.add(index)
            chunks.append(self._chunk(index, {"role": "assistant", "content": ""}))
        shown = event.token_ids and (self._body.logprobs or self._body.return_token_ids)
        if event.text or event.finish_reason or shown:
            delta = {"content": event.text} if event.text or event.logprobs else {}
            chunks.append(self._chunk(index, delta, event))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], event: GenerationEvent | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(event.logprobs) if event and event.logprobs else None,
            "finish_reason": event and event.finish_reason,
        }
        if event is not None:
            choice |= self._generation.shown_ids(event.token_ids)
        if event and event.finish_reason:
            choice["stop_reason"] = event.stop_reason
        chunk = self._generation.envelope("chat.completion.chunk", [choice])
        if self._usage_always:
            chunk["usage"] = self._generation.usage()
        elif self._usage_at_end:
            chunk["usage"] = None
        return chunk

    def _logprobs(
        self, entries: list[TokenLogprobs] | tuple[TokenLogprobs, ...]
    ) -> dict[str, Any] | None:
        return chat_logprobs(entries, self._names) if self._body.logprobs else None
