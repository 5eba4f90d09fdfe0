"""A request as its client sees it: token ids become text, events become an async generator.

Owns: detokenising, stop strings, and the events that the consumer has not taken yet. Lives on the
event loop. Does not know batches, variants or the engine thread.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.core import StepEvent
from tsugiki.engine.request import FinishReason, Request
from tsugiki.text.detokenizer import Detokenizer
from tsugiki.text.stop import StopMatcher
from tsugiki.text.tokenizer import TextSide


class OpenRequest:
    """One accepted request until its terminal event."""

    def __init__(self, spec: GenerationSpec, text: TextSide) -> None:
        self.spec = spec
        self.ended = False
        self._eos = text.eos_token_ids
        self._detokenizer = Detokenizer(text)
        self._stops = StopMatcher(spec.stop, spec.include_stop)
        self._completion_tokens = 0
        self._pending: list[GenerationEvent] = []
        self._arrival: asyncio.Future[None] | None = None

    def for_engine(self) -> Request:
        """The engine's side of it: no text, a seed in any case."""
        spec, params, now = self.spec, self.spec.params, time.monotonic()
        if params.ignore_eos:
            params = replace(params, stop_token_ids=params.stop_token_ids - self._eos)
        return Request(
            request_id=spec.request_id,
            variant=spec.variant,
            prompt_token_ids=spec.prompt_token_ids,
            params=params,
            tenant=spec.tenant,
            arrival=now,
            weight=spec.weight,
            priority=spec.priority,
            deadline=None if spec.timeout is None else now + spec.timeout,
            cache_salt=spec.cache_salt,
            seed=random.getrandbits(64) if params.seed is None else params.seed,
        )

    def feed(self, step: StepEvent) -> bool:
        """Take what a step brought; True when a stop string ended the request before the engine."""
        self._completion_tokens += len(step.token_ids)
        text, matched = self._text(step)
        stop_reason: str | int | None = matched
        reason = FinishReason.STOP if matched is not None else step.finish_reason
        if matched is None and reason is FinishReason.STOP and step.token_ids[-1] not in self._eos:
            stop_reason = step.token_ids[-1]
        self.ended = reason is not None
        self._push(
            GenerationEvent(
                text=text,
                token_ids=step.token_ids,
                logprobs=step.logprobs,
                prompt_logprobs=step.prompt_logprobs,
                finish_reason=reason,
                stop_reason=stop_reason,
                error=step.error,
                prompt_tokens=len(self.spec.prompt_token_ids),
                completion_tokens=self._completion_tokens,
                cached_tokens=step.cached_tokens,
                variant_load_ms=step.variant_load_ms,
            )
        )
        return matched is not None and step.finish_reason is None

    async def next(self) -> GenerationEvent:
        """Everything that arrived since the last call, as one event; waits until there is some.

        A consumer that is slower than the engine gets larger events, not a growing queue.

        Raises:
            StopAsyncIteration: after the terminal event.
        """
        while not self._pending:
            if self.ended:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        events, self._pending = self._pending, []
        return events[0] if len(events) == 1 else _merged(events)

    def _text(self, step: StepEvent) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that it completed."""
        ids = step.token_ids
        if step.finish_reason is FinishReason.STOP and not self.spec.include_stop:
            ids = ids[:-1]  # the stop token
        text = self._detokenizer.add(ids)
        if step.finish_reason is not None:
            text += self._detokenizer.flush()
        if not self.spec.stop or self._completion_tokens <= self.spec.params.min_tokens:
            return text, None
        shown, matched = self._stops.feed(text)
        if matched is None and step.finish_reason is not None:
            shown += self._stops.flush()
        return shown, matched

    def _push(self, event: GenerationEvent) -> None:
        self._pending.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


class EventStream(AsyncGenerator[GenerationEvent, None]):
    """What `submit` returns. Closing it, or dropping it, aborts a request that has not ended.

    Not an `async def` generator: those do nothing on `aclose` before their first `anext`.
    """

    def __init__(self, request: OpenRequest, abort: Callable[[str], None]) -> None:
        self._request = request
        self._abort = abort
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> GenerationEvent:
        """The next event; StopAsyncIteration after the terminal one."""
        return await self._request.next()

    async def asend(self, value: None) -> GenerationEvent:
        """As `anext`: nothing can be sent."""
        return await self._request.next()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """Close, then raise."""
        self._close()
        raise typ

    async def aclose(self) -> None:
        """Abort the request unless it has ended."""
        self._close()

    def __del__(self) -> None:
        # The collector may run on any thread.
        if not self._request.ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._abort, self._request.spec.request_id)

    def _close(self) -> None:
        if not self._request.ended:
            self._abort(self._request.spec.request_id)


def _merged(events: Sequence[GenerationEvent]) -> GenerationEvent:
    first, last = events[0], events[-1]
    return GenerationEvent(
        text="".join(event.text for event in events),
        token_ids=tuple(token for event in events for token in event.token_ids),
        logprobs=tuple(item for event in events for item in event.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        cached_tokens=last.cached_tokens,
        variant_load_ms=last.variant_load_ms,
    )
