"""Runs one step on the model: chunks in, tokens out. The seam below which tensors begin.

Owns: the `ModelRunner` protocol (tests script it), and `TorchModelRunner` with the decoder and the
KV cache tensors. Does not know queues, events, names of variants or clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tsugiki.codecs.base import ResidentVariant
from tsugiki.engine.batching import LogitRows, build
from tsugiki.engine.logprobs import token_logprobs
from tsugiki.engine.request import TokenLogprobs
from tsugiki.engine.sampler import Sampled, Sampler, Wanted
from tsugiki.engine.schedule import Chunk
from tsugiki.model.decoder import Decoder
from tsugiki.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a step found out about one chunk."""

    # none when the chunk does not complete the request's tokens. All but the last repeat its draft
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each of them, where the request wants any
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt tokens that follow its rows
    finite: bool = True  # False: the model gave NaN or infinity, and nothing else here counts


class ModelRunner(Protocol):
    """One forward pass and one choice per row."""

    def run(
        self, chunks: Sequence[Chunk], variants: Mapping[str, ResidentVariant]
    ) -> list[ChunkResult]:
        """One result per chunk, in the order given. Repeating a call repeats its results.

        `variants` holds the resident variant of every digest in the chunks. Whatever it raises is
        the fault of these chunks together.
        """

    def forget(self) -> None:
        """Keep no variant alive between steps."""


class TorchModelRunner:
    """The real one: a decoder, its KV cache, and the sampler."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache
        self._device = cache.layers[0].device
        self.sampler = Sampler(decoder.kernels)

    @torch.inference_mode()
    def run(
        self, chunks: Sequence[Chunk], variants: Mapping[str, ResidentVariant]
    ) -> list[ChunkResult]:
        """See ModelRunner.run."""
        plan = build(chunks, variants, self._cache.block_size, self._device)
        results = self._results(plan.logit_rows, self._decoder.forward(plan.batch, self._cache))
        by_request = {
            rows.chunk.request.request_id: result
            for rows, result in zip(plan.logit_rows, results, strict=True)
        }
        return [by_request[chunk.request.request_id] for chunk in chunks]

    def forget(self) -> None:
        """See ModelRunner.forget."""
        self._decoder.forget_variants()

    def _results(self, wanted: Sequence[LogitRows], logits: Tensor) -> list[ChunkResult]:
        """One result per chunk, in batch order."""
        sampled = self._sample(wanted, logits)
        scored = [self._score_prompt(w, logits) if w.prompt else () for w in wanted]
        return [
            _result(w.chunk, tokens, prompt)
            for w, tokens, prompt in zip(wanted, sampled, scored, strict=True)
        ]

    def _sample(self, wanted: Sequence[LogitRows], logits: Tensor) -> list[list[Sampled]]:
        """One token for each sampled row of each chunk, whether its draft was right or not."""
        tokens = [
            Wanted(w.chunk.request, len(w.chunk.request.output_token_ids) + i, row)
            for w in wanted
            for i, row in enumerate(w.sampled)
        ]
        found = iter(self.sampler.sample(logits, tokens) if tokens else ())
        return [[next(found) for _ in w.sampled] for w in wanted]

    def _score_prompt(self, wanted: LogitRows, logits: Tensor) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of the prompt tokens that follow this chunk's rows."""
        request = wanted.chunk.request
        first = len(request.prompt_logprobs) + 1
        tokens = request.tokens(first, first + len(wanted.prompt))
        alternatives = [request.params.prompt_logprobs or 0] * len(tokens)
        kernels = self._decoder.kernels
        return tuple(token_logprobs(kernels, logits, wanted.prompt, tokens, alternatives))


def _result(
    chunk: Chunk, sampled: Sequence[Sampled], prompt: tuple[TokenLogprobs, ...]
) -> ChunkResult:
    """The tokens up to the first that the draft did not foresee; those after it follow a wrong one.

    A draft changes nothing but the number of tokens of a step: each token was chosen from logits
    that only right tokens precede, by the random number of its own position.
    """
    right = 0
    while right < len(chunk.draft) and sampled[right].token_id == chunk.draft[right]:
        right += 1
    counted = sampled[: right + 1]
    return ChunkResult(
        token_ids=tuple(one.token_id for one in counted if one.finite),
        logprobs=tuple(one.logprobs for one in counted if one.logprobs is not None),
        prompt_logprobs=prompt,
        finite=all(one.finite for one in counted),
    )
