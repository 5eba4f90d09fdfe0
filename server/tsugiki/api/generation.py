"""What chat and completions share: from a body to sequences, from steps to an answer.

Owns: `Generation` (one request), `Output` (one sequence collected). Does not know how answers are
written.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from tsugiki.api import sse
from tsugiki.api.auth import Access
from tsugiki.api.errors import error_body, internal_error
from tsugiki.api.record import RequestRecord, record_of
from tsugiki.api.schemas import GenerationBody
from tsugiki.api.sequences import Sequences, Step
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
    weight: float  # of the tenant
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
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens()},
        }
        if self.record.variant_load_ms is not None:
            usage["variant_load_ms"] = self.record.variant_load_ms
        return usage

    def _cached_tokens(self) -> int:
        """Of the prompts, each counted once: as the first of its n sequences found it."""
        cached = self.record.cached_tokens
        return sum(cached.get(index, 0) for index in range(0, len(self.specs), self.body.n or 1))

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
        weight=access.weight,
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
                weight=generation.weight,
                priority=body.priority or 0,
                timeout=body.timeout,
                cache_salt=body.cache_salt,
                final_only=not body.stream,
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


def begin(
    request: Request,
    services: Services,
    generation: Generation,
    change: Callable[[Step], Step] | None = None,
) -> Sequences:
    """Start all sequences, noted on the record; they are aborted when the client leaves. `change`
    makes of each step what the client gets.

    Raises:
        ContextTooLong, Overloaded, Unavailable, InvalidRequest: one was refused.
    """

    def note(step: Step) -> Step:
        step = step if change is None else change(step)
        generation.record.take(step)
        return step

    sequences = Sequences(services.engine, generation.specs, note)
    services.disconnects.watch(request, sequences.leave)
    return sequences


async def collect(generation: Generation, sequences: Sequences) -> list[Output]:
    """All sequences, whole.

    Raises:
        ClientDisconnect: the client left. TsugikiError: a sequence failed.
    """
    outputs = [Output() for _ in generation.specs]
    try:
        while not sequences.ended:
            for index, event in await sequences.next():
                outputs[index].add(event)
    finally:
        sequences.close()
    return outputs


class Writer(Protocol):
    """How one generation's answer is written, as a stream."""

    def step(self, step: Step) -> bytes:
        """The events of one step; none for a step without news."""

    def closing(self) -> bytes:
        """What follows the last step."""


async def stream(generation: Generation, sequences: Sequences, writer: Writer) -> Response:
    """A stream of steps, each written at once. Until the first one has come, errors are statuses.

    Raises:
        ClientDisconnect: the client left. TsugikiError: a sequence failed before its first token.
    """
    answer = _Stream(generation, sequences, writer)
    try:
        await answer.wait()
    except BaseException:
        sequences.close()
        raise
    return sse.PiecewiseStream(answer)


class _Stream:
    """The pieces of a streamed answer; an error becomes the last event."""

    def __init__(self, generation: Generation, sequences: Sequences, writer: Writer) -> None:
        self._generation = generation
        self._sequences = sequences
        self._writer = writer
        self._first: Step | None = None

    async def wait(self) -> None:
        """Return when there is something to write."""
        self._first = await self._sequences.next()

    async def next(self) -> tuple[bytes, bool]:
        """What to write now, and whether more follows."""
        try:
            return await self._next()
        except TsugikiError as error:
            self._generation.record.error = error.code
            failure = error_body(error)
        except ClientDisconnect:
            raise
        except Exception as error:
            self._generation.record.error = "internal_error"
            failure = error_body(internal_error(error))
        return sse.data(failure) + sse.DONE, False

    async def push(self, write: sse.Write) -> None:
        """Write steps as they come; see sse.Pieces."""
        await self._sequences.push(lambda step: write(self._writer.step(step)))

    def close(self) -> None:
        """Abort what still runs."""
        self._sequences.close()

    async def _next(self) -> tuple[bytes, bool]:
        step, self._first = self._first or await self._sequences.next(), None
        body = self._writer.step(step)
        if self._sequences.ended:
            return body + self._writer.closing() + sse.DONE, False
        return body, True


def _own_seed(params: SamplingParams, choice: int) -> SamplingParams:
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=(params.seed + choice) % _SEED_RANGE)
