"""What a step tells of a request, from the engine's thread to its stream.

Owns: the event, and what of a request's record it repeats. Does not know how steps are computed.
"""

from dataclasses import dataclass

from tsugiki.engine.request import FinishReason, Request, TokenLogprobs


@dataclass(slots=True)
class StepEvent:
    """What a step did to one request: new tokens, or its end, or both."""

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    variant_load_ms: float | None = None


def ended(request: Request, reason: FinishReason, error: str | None = None) -> StepEvent:
    """The last event of a request that the step brought nothing else."""
    return StepEvent(
        request.request_id,
        finish_reason=reason,
        error=error,
        cached_tokens=request.num_cached_tokens,
        variant_load_ms=request.variant_load_ms,
    )


def advanced(request: Request, logprobs: tuple[TokenLogprobs, ...], before: int) -> StepEvent:
    """A request's tokens from number `before` on, the last event if it has finished.

    The first one brings the log-probabilities of the prompt.
    """
    tokens = request.output_token_ids[before:]
    prompt = None
    if request.params.prompt_logprobs is not None and before == 0:
        prompt = (None, *request.prompt_logprobs)
    return StepEvent(
        request.request_id,
        token_ids=tuple(tokens),
        logprobs=logprobs[: len(tokens)],
        prompt_logprobs=prompt,
        finish_reason=request.finish_reason,
        cached_tokens=request.num_cached_tokens,
        variant_load_ms=request.variant_load_ms,
    )
