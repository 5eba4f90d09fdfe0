"""OpenAI's own client understands every answer."""

from collections.abc import Iterator

import openai
import pytest

from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.errors import Overloaded


@pytest.fixture
def sdk(live: LiveServer) -> Iterator[openai.OpenAI]:
    """The SDK as a user would set it up."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_the_sdk_lists_and_retrieves_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["org/base", "tuned", "adapter"]
    assert sdk.models.retrieve("org/base").id == "org/base"


def test_the_sdk_chats_with_n_and_logprobs(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": "hi"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        seed=1,
        stop=["x"],
    )
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 5


def test_the_sdk_streams_chat_and_completions(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(chat)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello"
    assert chunks[-1].usage is not None
    completion = sdk.completions.create(model="tuned", prompt="x", stream=True, logprobs=1)
    assert "".join(chunk.choices[0].text for chunk in completion) == "hello"


def test_the_sdk_raises_its_own_errors(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.NotFoundError):
        sdk.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError):
        sdk.completions.create(model="tuned", prompt="x", suffix="!")
    engine.submit_error = Overloaded("full", retry_after=1)
    with pytest.raises(openai.RateLimitError):
        sdk.completions.create(model="tuned", prompt="x")


def test_the_sdk_raises_an_error_that_comes_in_mid_stream(
    sdk: openai.OpenAI, engine: FakeEngine
) -> None:
    from tests.api.test_chat import fail_after_one

    engine.script = fail_after_one
    stream = sdk.completions.create(model="tuned", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="the step raised"):
        list(stream)
