"""A request as its client sees it: token ids become text, events become an async generator.

Owns: detokenising, stop strings, and the events that the consumer has not taken yet. Lives on the
event loop. Does not know batches, variants or the engine thread.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from tsugiki.engine.client import Deliver, GenerationEvent, GenerationSpec
from tsugiki.engine.events import merged
from tsugiki.engine.mailbox import Mailbox
from tsugiki.engine.request import FinishReason, Request, TokenLogprobs
from tsugiki.engine.step_event import StepEvent
from tsugiki.text.detokenizer import detokenizer
from tsugiki.text.stop import StopMatcher
from tsugiki.text.tokenizer import TextSide


class OpenRequest:
    """One accepted request until its terminal event.

    What steps bring is kept until it is told: after every step, or once at the end for those who
    want the whole answer only (`spec.final_only`).
    """

    def __init__(self, spec: GenerationSpec, text: TextSide, deliver: Deliver) -> None:
        self.spec = spec
        self.ended = False
        self._deliver = deliver
        self._eos = text.eos_token_ids
        self._detokenizer = detokenizer(text)
        self._stops = StopMatcher(spec.stop, spec.include_stop)
        self._completion_tokens = 0
        self._first_token: float | None = None  # seconds of the monotonic clock
        self._last_token = 0.0
        self._decoded = 0  # of `_token_ids`, how many are in `_text`
        self._token_ids: list[int] = []  # from here on: not told yet
        self._text = ""
        self._gaps: list[float] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

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

    def feed(self, step: StepEvent, now: float) -> bool:
        """Take what a step brought; True when a stop string ended the request before the engine."""
        self._take(step, now)
        reason = step.finish_reason
        if self.spec.final_only and reason is None and not self.spec.stop:
            return False
        matched = self._decode(reason)
        self.ended = reason is not None or matched is not None
        if self.ended or not self.spec.final_only:
            self._tell(step, FinishReason.STOP if matched is not None else reason, matched)
        return matched is not None and reason is None

    def _take(self, step: StepEvent, now: float) -> None:
        if step.token_ids:
            self._clock(len(step.token_ids), now)
            self._token_ids += step.token_ids
        if step.logprobs:
            self._logprobs += step.logprobs
        if step.prompt_logprobs is not None:
            self._prompt_logprobs = step.prompt_logprobs

    def _clock(self, tokens: int, now: float) -> None:
        self._completion_tokens += tokens
        if self._first_token is None:
            self._first_token = now
        else:
            self._gaps.append((now - self._last_token) / tokens)
        self._last_token = now

    def _decode(self, reason: FinishReason | None) -> str | None:
        """Add to the text what may be shown now; the stop string that it completed."""
        ids = self._token_ids[self._decoded :]
        self._decoded = len(self._token_ids)
        new = len(ids)
        if reason is FinishReason.STOP and not self.spec.include_stop:
            ids = ids[:-1]  # the stop token
        if self.spec.stop:
            return self._decode_watchfully(ids, new, reason)
        self._text += self._detokenizer.add(ids)
        if reason is not None:
            self._text += self._detokenizer.flush()
        return None

    def _decode_watchfully(
        self, ids: list[int], new: int, reason: FinishReason | None
    ) -> str | None:
        """One token after the other, also where one step brought several (`new` in all): what comes
        after a stop string was never said."""
        count = self._completion_tokens - new
        for place, token_id in enumerate(ids):
            matched = self._show(self._detokenizer.add((token_id,)), count + place + 1)
            if matched is not None:
                self._unsay(new - place - 1)
                return matched
        if reason is None:
            return None
        matched = self._show(self._detokenizer.flush(), self._completion_tokens)
        if matched is None:
            self._text += self._stops.flush()
        return matched

    def _show(self, text: str, count: int) -> str | None:
        """Add the text of the `count`-th token, up to a stop string; which one it was."""
        if count <= self.spec.params.min_tokens:
            self._text += text
            return None
        shown, matched = self._stops.feed(text)
        self._text += shown
        return matched

    def _unsay(self, tokens: int) -> None:
        """Take the last ones back."""
        if tokens:
            self._completion_tokens -= tokens
            del self._token_ids[-tokens:]
            del self._logprobs[-tokens:]

    def _tell(self, step: StepEvent, reason: FinishReason | None, matched: str | None) -> None:
        stop_reason: str | int | None = matched
        if reason is FinishReason.STOP and matched is None and self._token_ids[-1] not in self._eos:
            stop_reason = self._token_ids[-1]
        event = GenerationEvent(
            text=self._text,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
            error=step.error,
            prompt_tokens=len(self.spec.prompt_token_ids),
            completion_tokens=self._completion_tokens,
            cached_tokens=step.cached_tokens,
            variant_load_ms=step.variant_load_ms,
            first_token=self._first_token,
            gaps=tuple(self._gaps),
        )
        self._token_ids, self._logprobs, self._gaps = [], [], []
        self._decoded, self._text, self._prompt_logprobs = 0, "", None
        self._deliver(event)


class EventStream(AsyncGenerator[GenerationEvent, None]):
    """What `submit` returns. Closing it, or dropping it, aborts a request that has not ended.

    A consumer that is slower than the engine gets larger events, not a growing queue. Not an
    `async def` generator: those do nothing on `aclose` before their first `anext`.
    """

    def __init__(
        self, request_id: str, events: Mailbox[GenerationEvent], abort: Callable[[str], None]
    ) -> None:
        self._request_id = request_id
        self._events = events  # whoever fills it must not hold the stream: it may be dropped
        self._abort = abort
        self._ended = False
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> GenerationEvent:
        """Everything since the last call; StopAsyncIteration after the terminal event."""
        if self._ended and not self._events:
            raise StopAsyncIteration
        event = merged(await self._events.take())
        self._ended = event.finish_reason is not None
        return event

    async def asend(self, value: None) -> GenerationEvent:
        """As `anext`: nothing can be sent."""
        return await anext(self)

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
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._abort, self._request_id)

    def _close(self) -> None:
        if not self._ended:
            self._abort(self._request_id)
