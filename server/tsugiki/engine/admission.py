"""Whether a request is taken at all: does it make sense, does it fit, is there room to queue.

Owns: these refusals, and the rate at which requests finish, from which Retry-After follows. Does
not know threads or batches.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tsugiki.engine.client import GenerationSpec
from tsugiki.errors import ContextTooLong, InvalidRequest, Overloaded

WINDOW_SECONDS = 30.0
RETRY_SECONDS = (1.0, 120.0)  # never asks for less or more
UNKNOWN_RETRY_SECONDS = 5.0  # before anything has finished


class FinishRate:
    """Requests finished per second over the last half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._times: deque[float] = deque()

    def finished(self) -> None:
        """One more."""
        self._times.append(self._clock())
        self._forget()

    def seconds_for(self, requests: int) -> float:
        """How long so many requests take at the measured rate."""
        self._forget()
        if not self._times:
            return UNKNOWN_RETRY_SECONDS
        elapsed = max(1e-3, min(WINDOW_SECONDS, self._clock() - self._since))
        least, most = RETRY_SECONDS
        return min(most, max(least, requests * elapsed / len(self._times)))

    def _forget(self) -> None:
        while self._times and self._times[0] < self._clock() - WINDOW_SECONDS:
            self._times.popleft()


@dataclass(frozen=True, slots=True)
class Queue:
    """The open requests, running and waiting, that a new one finds."""

    all: int
    own: int  # of its tenant
    tenants: int  # with open requests, its own included


@dataclass(frozen=True, slots=True)
class Admission:
    """The limits of a server, checked on the event loop before a request reaches the engine.

    A full queue refuses those who fill it: a tenant with less than its share of the places is still
    let in, so that there are never more than twice `max_open_requests`.
    """

    max_model_len: int
    max_open_requests: int  # running and waiting
    rate: FinishRate

    def check(self, spec: GenerationSpec, vocab_size: int, queue: Queue) -> None:
        """Raise unless this request may be queued beside those.

        Raises:
            InvalidRequest: no prompt, or token ids that the model does not have.
            ContextTooLong: prompt + max_tokens is over the limit.
            Overloaded: the queue is full, and its tenant has its share of it.
        """
        prompt, max_tokens = len(spec.prompt_token_ids), spec.params.max_tokens
        if not prompt:
            raise InvalidRequest("the prompt has no tokens; send at least one", param="prompt")
        if prompt + max_tokens > self.max_model_len:
            raise ContextTooLong(
                f"{prompt} prompt tokens + max_tokens {max_tokens} = {prompt + max_tokens}, but "
                f"this server takes {self.max_model_len} in all; shorten the prompt or max_tokens",
                param="max_tokens",
            )
        _check_token_ids(spec, vocab_size)
        full = queue.all >= self.max_open_requests
        if full and (queue.own + 1) * queue.tenants > self.max_open_requests:
            raise Overloaded(
                f"{queue.all} requests are open, the most this server takes; try again later",
                retry_after=self.rate.seconds_for(queue.all),
            )


def _check_token_ids(spec: GenerationSpec, vocab_size: int) -> None:
    lowest, highest = min(spec.prompt_token_ids), max(spec.prompt_token_ids)
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise InvalidRequest(
            f"token id {wrong} is not in the model's vocabulary of {vocab_size}", param="prompt"
        )
