"""Several sequences as one stream of steps.

Owns: submitting them, merging their events, ending all when one fails. Does not know HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from tsugiki.engine.client import EngineClient, GenerationEvent, GenerationSpec
from tsugiki.engine.request import FinishReason
from tsugiki.errors import EngineFailure, Unavailable

Events = list[GenerationEvent]
Step = list[tuple[int, GenerationEvent]]  # (sequence, what it gained), in order of arrival
Steps = AsyncGenerator[Step, None]


async def merged(
    engine: EngineClient, specs: Sequence[GenerationSpec], note: Callable[[Events], None]
) -> Steps:
    """Events of all sequences, those that are there together given out together.

    `note` is told of the events before they are given out.

    Closing this generator aborts every sequence.

    Raises:
        TsugikiError: what a sequence raised, or ended with.
    """
    arrivals: asyncio.Queue[tuple[int, GenerationEvent | Exception]] = asyncio.Queue()
    pumps = [
        asyncio.create_task(_pump(engine, spec, index, arrivals))
        for index, spec in enumerate(specs)
    ]
    running = len(pumps)
    try:
        while running:
            arrived = [await arrivals.get()]
            while not arrivals.empty():
                arrived.append(arrivals.get_nowait())
            step = [(index, _good(event)) for index, event in arrived]
            running -= sum(event.finish_reason is not None for _, event in step)
            note([event for _, event in step])
            yield step
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    engine: EngineClient,
    spec: GenerationSpec,
    index: int,
    arrivals: asyncio.Queue[tuple[int, GenerationEvent | Exception]],
) -> None:
    """Move one sequence's events; whatever happens, exactly one terminal item is put."""
    try:
        events = engine.submit(spec)
        try:
            async for event in events:
                arrivals.put_nowait((index, event))
                if event.finish_reason is not None:
                    return
        finally:
            await events.aclose()
        raise EngineFailure("the engine ended this request without a last word")
    except Exception as error:
        arrivals.put_nowait((index, error))


def _good(event: GenerationEvent | Exception) -> GenerationEvent:
    if isinstance(event, Exception):
        raise event
    if event.finish_reason is FinishReason.ERROR:
        raise EngineFailure(event.error or "the engine failed in a step of this request")
    if event.finish_reason is FinishReason.ABORT:
        raise Unavailable(event.error or "the request was aborted: the server is shutting down")
    return event
