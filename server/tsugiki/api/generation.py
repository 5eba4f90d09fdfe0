"""What chat and completions share: from a body to sequences, from steps to an answer.

Owns: `Generation` (one request), `Output` (one sequence collected). Does not know how answers are
written.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request

from tsugiki.api import sse
from tsugiki.api.auth import Access
from tsugiki.api.disconnect import unless_disconnected
from tsugiki.api.errors import error_body, internal_error
from tsugiki.api.record import RequestRecord, record_of
from tsugiki.api.schemas import GenerationBody
from tsugiki.api.sequences import Step, Steps, merged
from tsugiki.api.services import Services
from tsugiki.engine.client import EngineClient, GenerationEvent, GenerationSpec
from tsugiki.engine.request import (
    SamplingParams,
    TokenLogprobs,
    VariantRef,
)
from tsugiki.errors import TsugikiError
from tsugiki.text.tokenizer import TextSide

_SEED_RANGE = 2**63


@dataclass(frozen=True, slots=True)
class Generation:
    """One request for n continuations of each prompt; sequence i belongs to prompt i // n."""

    id: str
    body: GenerationBody
    variant: VariantRef
    text: TextSide
    fingerprint: str
    record: RequestRecord
    specs: tuple[GenerationSpec, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object so far: every prompt counted once."""
        generated = self.record.completion_tokens
        prompt = self.record.prompt_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
        }
        if self.record.variant_load_ms is not None:
            usage["variant_load_ms"] = self.record.variant_load_ms
        return usage

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The outer object of an answer or a chunk."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def shown_ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        """The generated token ids of a choice, when `return_token_ids` asks for them."""
        return {"token_ids": list(token_ids)} if self.body.return_token_ids else {}


@dataclass(slots=True)
class Output:
    """One sequence, collected."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, event: GenerationEvent) -> None:
        """Take the next event."""
        self.text += event.text
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = event.finish_reason and str(event.finish_reason)
        self.stop_reason = event.stop_reason


def open_generation(
    request: Request, services: Services, access: Access, body: GenerationBody, *, kind: str
) -> Generation:
    """Resolve the model and note it on the record; sequences follow with `with_sequences`.

    Raises:
        ModelNotFound: unknown, or not for this caller.
        Unsupported: a field that this server does not implement.
    """
    body.refuse_unsupported()
    variant = access.resolve(body.model, body.user)
    record = record_of(request)
    record.variant = identity(services.engine, variant)
    record.tenant = access.tenant(variant)
    return Generation(
        id=f"{kind}-{uuid.uuid4().hex}",
        body=body,
        variant=variant,
        text=services.engine.text(variant),
        fingerprint=fingerprint(services.engine, record.variant),
        record=record,
        specs=(),
    )


def with_sequences(
    generation: Generation, prompts: Iterable[tuple[tuple[int, ...], SamplingParams]]
) -> Generation:
    """The generation with n sequences for each (prompt, parameters); seeds differ among the n."""
    body, prompt_tokens = generation.body, 0
    specs: list[GenerationSpec] = []
    for prompt, params in prompts:
        prompt_tokens += len(prompt)
        for choice in range(body.n or 1):
            spec = GenerationSpec(
                request_id=f"{generation.id}-{len(specs)}",
                variant=generation.variant,
                prompt_token_ids=prompt,
                params=_own_seed(params, choice),
                stop=body.stops,
                include_stop=bool(body.include_stop_str_in_output),
                tenant=generation.record.tenant,
            )
            specs.append(spec)
    generation.record.prompt_tokens = prompt_tokens
    return replace(generation, specs=tuple(specs))


def identity(engine: EngineClient, variant: VariantRef) -> VariantRef:
    """The version as answers, logs and metrics name it: the base by its fingerprint."""
    if variant.digest is not None:
        return variant
    return VariantRef(variant.name, engine.base().digest)


def fingerprint(engine: EngineClient, identified: VariantRef) -> str:
    """What an answer depends on beside the request: base, variant digest, kernels, dtype."""
    base, machine = engine.base().id, engine.machine()
    digest = (identified.digest or "").removeprefix("sha256:")[:16]
    return f"{base}:{digest}:{machine.kernels}:{machine.dtype}"


def steps_of(engine: EngineClient, generation: Generation) -> Steps:
    """The steps of all sequences, noted on the record; closing them aborts what still runs."""
    return merged(engine, generation.specs, generation.record.take)


async def first_step(request: Request, steps: Steps) -> Steps:
    """The same steps, once the first one has come: until then errors are HTTP statuses.

    Raises:
        ClientDisconnect: the client left before.
    """
    try:
        first = await unless_disconnected(request, _next(steps))
    except BaseException:
        await steps.aclose()
        raise
    return _resumed(first, steps)


async def collect(request: Request, generation: Generation, steps: Steps) -> list[Output]:
    """All sequences, whole.

    Raises:
        ClientDisconnect: the client left; the sequences are aborted.
    """
    outputs = [Output() for _ in generation.specs]

    async def gather() -> None:
        async for step in steps:
            for index, event in step:
                outputs[index].add(event)

    try:
        await unless_disconnected(request, gather())
    finally:
        await steps.aclose()
    return outputs


async def stream(
    generation: Generation, steps: Steps, write: Callable[[Step], str], closing: Callable[[], str]
) -> AsyncGenerator[str, None]:
    """An event stream: each step written at once; an error becomes the last event."""
    try:
        async for step in steps:
            if text := write(step):
                yield text
        yield closing()
    except TsugikiError as error:
        generation.record.error = error.code
        yield sse.data(error_body(error))
    except Exception as error:
        generation.record.error = "internal_error"
        yield sse.data(error_body(internal_error(error)))
    finally:
        await steps.aclose()
    yield sse.DONE


async def _next(steps: Steps) -> Step:
    return await anext(steps)


async def _resumed(first: Step, rest: Steps) -> Steps:
    try:
        yield first
        async for step in rest:
            yield step
    finally:
        await rest.aclose()


def _own_seed(params: SamplingParams, choice: int) -> SamplingParams:
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=(params.seed + choice) % _SEED_RANGE)
