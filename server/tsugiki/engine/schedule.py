"""What the scheduler decides, as data: the bounds of a step, and the chunks that one consists of.

Owns: no decisions. Does not know queues, blocks, tensors or variants.
"""

from dataclasses import dataclass, field

from tsugiki.engine.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may hold."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_prompt_logprob_tokens: int = 64  # of one request in one step: each is a row of logits
    prefix_caching: bool = True
    step_time_target: float | None = None  # seconds that a step should take while anybody decodes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start : start + num_tokens` of a request, computed in one step, and a guess at those
    that come next, computed with them."""

    request: Request
    start: int
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.num_tokens + len(self.draft)

    @property
    def completes(self) -> bool:
        """The request's last known token is in it: its logits choose the next one."""
        return self.start + self.num_tokens == self.request.num_tokens


@dataclass(slots=True)
class SchedulerOutput:
    """One step. The only thing that crosses from the scheduler to the model's side."""

    chunks: list[Chunk] = field(default_factory=list)  # those that decode come first
    admitted: list[Request] = field(default_factory=list)  # now running, were waiting
    preempted: list[Request] = field(default_factory=list)  # now waiting, were running
    decode_rows: int = 0
    prompt_tokens: int = 0
