"""Requests for engine tests that need no model."""

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import pytest

from tsugiki.engine.request import Request, SamplingParams, VariantRef

RequestFactory = Callable[..., Request]


@pytest.fixture
def make_request() -> RequestFactory:
    """`make(prompt=3, digest=None, tenant="", output=(), **sampling)`; greedy unless said."""
    numbers = count()

    def make(
        prompt: int | Iterable[int] = 3,
        *,
        digest: str | None = None,
        tenant: str = "",
        output: Iterable[int] = (),
        **sampling: Any,
    ) -> Request:
        number = next(numbers)
        ids = range(10, 10 + prompt) if isinstance(prompt, int) else prompt
        params = SamplingParams(**({"temperature": 0.0} | sampling))
        return Request(
            request_id=f"r{number}",
            variant=VariantRef(digest or "base", digest),
            prompt_token_ids=tuple(ids),
            params=params,
            tenant=tenant,
            arrival=float(number),
            output_token_ids=list(output),
            seed=params.seed or 0,
        )

    return make
