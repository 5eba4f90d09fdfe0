"""POST /v1/completions.

Owns: the completion form of requests and answers, `echo` and prompt log-probabilities included.
Does not know how sequences are run.
"""

from dataclasses import replace
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
from tsugiki.api.logprobs import TokenNames, completion_logprobs
from tsugiki.api.prompts import as_batch, encode_prompt, room_for_answer
from tsugiki.api.responses import Completion, documented_errors
from tsugiki.api.sampling import sampling_params
from tsugiki.api.schemas import CompletionBody
from tsugiki.api.sequences import Step
from tsugiki.api.services import Services, ServicesDep
from tsugiki.engine.client import GenerationEvent
from tsugiki.engine.request import FinishReason, SamplingParams, TokenLogprobs
from tsugiki.errors import InvalidRequest

DEFAULT_MAX_TOKENS = 16  # OpenAI's

router = APIRouter(tags=["inference"])


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **documented_errors(404, 429),
    },
)
async def create_completion(
    request: Request, body: CompletionBody, services: ServicesDep, access: AccessDep
) -> Response:
    """Continue one or several prompts, whole or as server-sent events."""
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens: 0 makes sense only with echo", param="max_tokens")
    generation = open_generation(request, services, access, body, kind="cmpl")
    _refuse_too_many(body, services)
    prompts = [
        await _sequence(prompt, body, generation, services) for prompt in as_batch(body.prompt)
    ]
    generation = with_sequences(generation, prompts)
    change = _prompt_only if body.max_tokens == 0 else None
    sequences = begin(request, services, generation, change)
    writer = _CompletionWriter(generation, body)
    if body.stream:
        return await stream(generation, sequences, writer)
    return JSONResponse(writer.whole(await collect(generation, sequences)))


def _refuse_too_many(body: CompletionBody, services: Services) -> None:
    """A batch that could never be admitted whole is the caller's error, not an overload."""
    wanted = len(as_batch(body.prompt)) * (body.n or 1)
    most = services.config.max_num_seqs + services.config.max_queued_requests
    if wanted > most:
        raise InvalidRequest(
            f"prompt: {wanted} sequences (prompts times n) are over the limit of {most}",
            param="prompt",
        )


async def _sequence(
    prompt: str | list[int], body: CompletionBody, generation: Generation, services: Services
) -> tuple[tuple[int, ...], SamplingParams]:
    limit = services.engine.max_model_len()
    special = body.add_special_tokens is not False
    ids = await encode_prompt(prompt, generation.text, limit, add_special_tokens=special)
    room = room_for_answer(ids, body.max_tokens, limit, default=DEFAULT_MAX_TOKENS)
    params = sampling_params(
        body,
        generation.text,
        max_tokens=max(1, room),  # 0 with echo: one is generated and not shown
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    return ids, params


def _prompt_only(step: Step) -> Step:
    """max_tokens 0: the prompt's log-probabilities and nothing else."""
    end = FinishReason.LENGTH
    return [
        (index, replace(event, text="", token_ids=(), logprobs=(), finish_reason=end))
        for index, event in step
    ]


class _CompletionWriter:
    """Answers of one generation, as chunks or whole."""

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        self._generation = generation
        self._body = body
        self._names = TokenNames(generation.text, bool(body.return_tokens_as_token_ids))
        self._characters: dict[int, int] = {}  # sequence -> characters streamed so far
        options = body.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        varied = self._usage_always or body.logprobs is not None or body.return_token_ids
        self._only_text = not varied
        self._text_events = sse.TextEvents(self._text_chunk)

    def whole(self, outputs: list[Output]) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = []
        for index, output in enumerate(outputs):
            echo = self._echo(index)
            choices.append(self._choice(index, echo, output, offset=0, with_prompt=True))
        answer = self._generation.envelope("text_completion", choices)
        return {**answer, "usage": self._generation.usage()}

    def step(self, step: Step) -> bytes:
        """The events of one step."""
        return b"".join([self._written(index, event) for index, event in step])

    def _written(self, index: int, event: GenerationEvent) -> bytes:
        if self._only_text and event.text and not event.finish_reason and index in self._characters:
            return self._text_events(index, event.text)
        first = index not in self._characters
        echo = self._echo(index) if first else ""
        offset = self._characters.get(index, 0)
        shown = event.logprobs or (self._body.return_token_ids and event.token_ids)
        if not (first and echo) and not (event.text or event.finish_reason or shown):
            return b""
        output = Output()
        output.add(event)
        choice = self._choice(index, echo, output, offset=offset, with_prompt=first)
        self._characters[index] = offset + len(choice["text"])
        return sse.data(self._chunk([choice]))

    def _text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk([self._choice(index, "", Output(text), offset=0, with_prompt=False)])

    def closing(self) -> bytes:
        """The event with the usage, if it was asked for."""
        if not self._usage_at_end:
            return b""
        chunk = self._generation.envelope("text_completion", [])
        return sse.data({**chunk, "usage": self._generation.usage()})

    def _echo(self, index: int) -> str:
        """The prompt as text, when it is to be repeated."""
        if not self._body.echo:
            return ""
        prompt = as_batch(self._body.prompt)[index // (self._body.n or 1)]
        if isinstance(prompt, str):
            return prompt
        return self._generation.text.decode(prompt, skip_special_tokens=False)

    def _choice(
        self, index: int, echo: str, output: Output, *, offset: int, with_prompt: bool
    ) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs is not None:
            entries: list[tuple[int, TokenLogprobs | None]] = list(
                zip(output.token_ids, output.logprobs, strict=False)
            )
            if self._body.echo and with_prompt:
                prompt = self._generation.specs[index].prompt_token_ids
                shown = output.prompt_logprobs or (None,) * len(prompt)
                entries = [*zip(prompt, shown, strict=True), *entries]
            logprobs = completion_logprobs(entries, self._names, offset)
        choice = {
            "index": index,
            "text": echo + output.text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        return choice | self._generation.shown_ids(output.token_ids)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._generation.envelope("text_completion", choices)
        if self._usage_always:
            chunk["usage"] = self._generation.usage()
        elif self._usage_at_end:
            chunk["usage"] = None
        return chunk
