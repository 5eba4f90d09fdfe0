"""Events of one request put together.

Owns: `merged`. Does not know where events come from or who reads them.
"""

from collections.abc import Sequence
from dataclasses import replace

from tsugiki.engine.client import GenerationEvent


def merged(events: Sequence[GenerationEvent]) -> GenerationEvent:
    """Events of one request, oldest first and at least one, as one."""
    first, last = events[0], events[-1]
    if first is last:
        return first
    return replace(
        last,
        text="".join(event.text for event in events),
        token_ids=tuple(token for event in events for token in event.token_ids),
        logprobs=tuple(item for event in events for item in event.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        gaps=tuple(gap for event in events for gap in event.gaps),
    )
