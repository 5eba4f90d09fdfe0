"""Request fields to sampling parameters: the request's value, else the variant's default, else
OpenAI's.

Owns: that order, and what can only be checked against a variant's vocabulary. Does not know HTTP.
"""

from typing import Any

from tsugiki.api.schemas import GenerationBody
from tsugiki.engine.request import SamplingParams
from tsugiki.errors import InvalidRequest
from tsugiki.text.tokenizer import TextSide

_MIN_TOP_P = 1e-6  # OpenAI allows 0, which means: the likeliest token only


def sampling_params(
    body: GenerationBody,
    text: TextSide,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The parameters of one sequence.

    Raises:
        InvalidRequest: a token id outside the vocabulary; min_tokens over max_tokens.
    """
    if (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {body.min_tokens} is more than max_tokens ({max_tokens})",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_chosen(body, text, "temperature", 1.0),
        top_p=max(_MIN_TOP_P, _chosen(body, text, "top_p", 1.0)),
        top_k=max(0, _chosen(body, text, "top_k", 0)),
        min_p=_chosen(body, text, "min_p", 0.0),
        repetition_penalty=_chosen(body, text, "repetition_penalty", 1.0),
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body, text),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop_token_ids=_stop_token_ids(body, text),
    )


def check_token_ids(ids: list[int], text: TextSide, param: str) -> None:
    """Raises InvalidRequest for an id that this variant has no row for."""
    if ids and max(ids) >= text.vocab_size:
        raise InvalidRequest(
            f"{param}: token id {max(ids)} is outside the vocabulary of {text.vocab_size}",
            param=param,
        )


def _chosen(body: GenerationBody, text: TextSide, name: str, default: float) -> Any:
    value = getattr(body, name)
    return text.generation_defaults.get(name, default) if value is None else value


def _logit_bias(body: GenerationBody, text: TextSide) -> tuple[tuple[int, float], ...]:
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_token_ids(list(bias), text, "logit_bias")
    return tuple(sorted(bias.items()))


def _stop_token_ids(body: GenerationBody, text: TextSide) -> frozenset[int]:
    own = list(body.stop_token_ids or ())
    check_token_ids(own, text, "stop_token_ids")
    return frozenset(own) if body.ignore_eos else text.eos_token_ids | frozenset(own)
