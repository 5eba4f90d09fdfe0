"""One generation request as the scheduler sees it: ids and counters, no tensors, no text.

Owns: SamplingParams, Request and its life cycle. Does not know text, HTTP or the model.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request ended; the first two are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    TIMEOUT = "timeout"  # its deadline passed; what was generated until then was sent
    ERROR = "error"


class RequestStatus(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; defaults are OpenAI's (None and 0 mean "off" as said)."""

    max_tokens: int = 16
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False  # the engine client takes the EOS ids out of stop_token_ids
    logprobs: int | None = None  # how many alternatives per generated token; 0: the chosen one only
    prompt_logprobs: int | None = None  # the same for every prompt token but the first
    stop_token_ids: frozenset[int] = frozenset()  # the variant's EOS ids, plus the request's own


@dataclass(frozen=True, slots=True)
class VariantRef:
    """An immutable version: what `model` was resolved to. digest None: the base itself."""

    name: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token, and of its alternatives, most likely first."""

    token_id: int
    logprob: float
    rank: int  # 1: the most likely
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True, eq=False)
class Request:
    """A request in the engine. `num_computed_tokens` catches up with `num_tokens`, chunk by chunk;
    nothing else distinguishes prefill from decode.

    Preemption frees the blocks and sets `num_computed_tokens` back to 0; the tokens stay, and so
    do the prompt log-probabilities that were already computed.
    """

    request_id: str
    variant: VariantRef
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    tenant: str
    arrival: float  # seconds, the engine's clock
    weight: float = 1.0  # of its tenant: its share of the engine under contention
    priority: int = 0  # lower goes first
    deadline: float | None = None  # seconds, the engine's clock; then it ends with TIMEOUT
    cache_salt: str | None = None  # only requests of the same salt share cached prefixes
    status: RequestStatus = RequestStatus.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache when it first ran
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)  # of its full blocks, see prefix_cache
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of prompt tokens 1, 2, ...
    finish_reason: FinishReason | None = None
    num_charged_tokens: int = 0  # of the tenant's account, see tenants.py
    preemptions: int = 0
    seed: int = 0  # params.seed, or one drawn at submission
    loading_since: float | None = None  # seconds, the engine's clock; its variant is not resident
    variant_load_ms: float | None = None  # how long it waited for its variant

    @property
    def num_tokens(self) -> int:
        """Prompt plus generated tokens so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def max_total_tokens(self) -> int:
        """The most tokens this request can come to have."""
        return len(self.prompt_token_ids) + self.params.max_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """The token ids at positions start, ..., stop - 1 of prompt + output."""
        prompt = len(self.prompt_token_ids)
        known = list(self.prompt_token_ids[start:stop])
        if stop > prompt:
            known += self.output_token_ids[max(0, start - prompt) : stop - prompt]
        return known
