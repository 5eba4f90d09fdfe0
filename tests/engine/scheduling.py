"""A scheduler of small limits, and steps that need no model."""

from collections.abc import Callable
from typing import Any

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.request import Request
from tsugiki.engine.schedule import Limits, SchedulerOutput
from tsugiki.engine.scheduler import Scheduler


def scheduler(
    *, blocks: int = 64, block_size: int = 4, seqs: int = 8, tokens: int = 32, **limits: Any
) -> Scheduler:
    values = {"max_model_len": blocks * block_size} | limits
    return Scheduler(
        BlockManager(blocks, block_size),
        Limits(max_num_seqs=seqs, max_num_batched_tokens=tokens, **values),
    )


def step(it: Scheduler, ready: Callable[[Request], bool] = lambda request: True) -> SchedulerOutput:
    """Schedule and update; every completed chunk samples token 7."""
    output = it.schedule(ready)
    it.update([(chunk, (7,) if chunk.completes else ()) for chunk in output.chunks])
    return output


def shape(output: SchedulerOutput) -> list[tuple[str, int, int]]:
    return [(c.request.request_id, c.start, c.num_tokens) for c in output.chunks]
