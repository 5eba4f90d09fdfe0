"""Several sequences as one stream of steps.

Owns: opening them, gathering their events, ending all when one fails or the client leaves. Does
not know HTTP.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from tsugiki.engine.client import EngineClient, GenerationEvent, GenerationSpec
from tsugiki.engine.events import merged
from tsugiki.engine.mailbox import Mailbox
from tsugiki.engine.request import FinishReason
from tsugiki.errors import EngineFailure, Unavailable

Step = list[tuple[int, GenerationEvent]]  # (sequence, what it gained), in order of arrival
Take = Callable[[Step], bool]  # False: give me no more


class Sequences:
    """The sequences of one generation, running until each has ended or `close` is called."""

    def __init__(
        self,
        engine: EngineClient,
        specs: Sequence[GenerationSpec],
        note: Callable[[Step], Step] = lambda step: step,
    ) -> None:
        """`note` sees every step before it is given out, and may change it."""
        self._engine = engine
        self._note = note
        self._running: dict[int, str] = {}  # sequence -> id of its request
        self._arrivals: Mailbox[tuple[int, GenerationEvent] | Exception] = Mailbox()
        self._take: Take | None = None  # whoever gets steps as they come
        try:
            for index, spec in enumerate(specs):
                engine.open(spec, partial(self._arrived, index))
                self._running[index] = spec.request_id
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """All sequences have told their end."""
        return not self._running

    async def next(self) -> Step:
        """Everything that the sequences gained since the last call; waits until there is some.

        A reader that is slower than the engine gets fewer and larger events.

        Raises:
            TsugikiError: what a sequence ended with. The exception given to `leave`.
        """
        step = [_good(arrival) for arrival in await self._arrivals.take()]
        if len(step) > len(self._running):
            step = _one_each(step)
        for index, event in step:
            if event.finish_reason is not None:
                self._running.pop(index, None)
        return self._note(step)

    async def push(self, take: Take) -> None:
        """Give steps to `take` as they come, before anything else runs on the event loop. Returns
        when it wants no more, or when `next` has something: a sequence's end, a failure."""
        self._take = take
        try:
            await self._arrivals.arrival()
        finally:
            self._take = None

    def leave(self, why: Exception) -> None:
        """Nobody waits for the answer any longer: abort what runs, and let `next` raise this."""
        self.close()
        self._arrivals.put(why)

    def close(self) -> None:
        """Abort the sequences that still run."""
        while self._running:
            self._engine.abort(self._running.popitem()[1])

    def _arrived(self, index: int, event: GenerationEvent) -> None:
        if self._take is None or self._arrivals or event.finish_reason is not None:
            self._arrivals.put((index, event))
            return
        try:
            if not self._take(self._note([(index, event)])):
                self._take = None
                self._arrivals.interrupt()
        except Exception as error:  # it is this answer's, and must not reach whoever has the news
            self._arrivals.put(error)


def _one_each(step: Step) -> Step:
    events: defaultdict[int, list[GenerationEvent]] = defaultdict(list)
    for index, event in step:
        events[index].append(event)
    return [(index, merged(of_one)) for index, of_one in events.items()]


def _good(arrival: tuple[int, GenerationEvent] | Exception) -> tuple[int, GenerationEvent]:
    if isinstance(arrival, Exception):
        raise arrival
    event = arrival[1]
    if event.finish_reason is FinishReason.ERROR:
        raise EngineFailure(event.error or "the engine failed in a step of this request")
    if event.finish_reason is FinishReason.ABORT:
        raise Unavailable(event.error or "the request was aborted: the server is shutting down")
    return arrival
