"""Request bodies, as OpenAI defines them plus the extensions that vLLM's users know.

Owns: names, types and ranges of fields. null always means the default; unknown fields are
accepted; what is understood but not implemented is refused by name. Does not know the engine.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tsugiki.errors import Unsupported

MAX_CHOICES = 128
MAX_STOPS = 32
MAX_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[list[str], Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stops = StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)]
# Safe as a file name and in a URL: no separators, no leading dot.
VARIANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
DIGEST = r"^sha256:[0-9a-f]{12,64}$"
UPLOAD_ID = r"^[A-Za-z0-9_-]{8,64}$"
Digest = Annotated[str, StringConstraints(pattern=DIGEST)]
VariantName = Annotated[str, StringConstraints(pattern=VARIANT_NAME)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


def _wanted(value: Any) -> bool:
    return bool(value)


def _other_than(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: value is not None and value not in harmless


_TEXT_FORMAT = {"type": "text"}
_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tools": (_wanted, "tool calling is not supported"),
    "tool_choice": (_other_than("none", "auto"), "tool calling is not supported"),
    "functions": (_wanted, "function calling is not supported"),
    "function_call": (_other_than("none", "auto"), "function calling is not supported"),
    "response_format": (
        _other_than(_TEXT_FORMAT),
        "only response_format {type: text} is supported",
    ),
    "audio": (_wanted, "audio output is not supported"),
    "modalities": (_other_than([], ["text"]), "only the modality text is supported"),
    "prediction": (_wanted, "predicted outputs are not supported"),
    "web_search_options": (_wanted, "web search is not supported"),
    "store": (_wanted, "completions are not stored"),
    "suffix": (_wanted, "insertion before a suffix is not supported"),
    "guided_json": (_wanted, "guided decoding is not supported"),
    "guided_regex": (_wanted, "guided decoding is not supported"),
    "guided_choice": (_wanted, "guided decoding is not supported"),
    "guided_grammar": (_wanted, "guided decoding is not supported"),
    "structured_outputs": (_wanted, "guided decoding is not supported"),
    "use_beam_search": (_wanted, "beam search is not supported"),
}


class RequestBody(BaseModel):
    """Strict types (no "5" for 5), finite numbers, and room for fields we do not know."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    def refuse_unsupported(self) -> None:
        """Raises Unsupported for a field that would change the answer and that we do not do."""
        for name, value in (self.model_extra or {}).items():
            asks_for, why = _UNSUPPORTED.get(name, (None, ""))
            if asks_for is not None and asks_for(value):
                raise Unsupported(f"{name}: {why}; leave the field out", param=name)


class StreamOptions(RequestBody):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(RequestBody):
    """What chat and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stops | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None  # lower goes first
    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None  # seconds
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def refuse_unsupported(self) -> None:
        """Also: stream_options say something about a stream that was not asked for."""
        super().refuse_unsupported()
        if self.stream_options is not None and not self.stream:
            raise Unsupported("stream_options needs stream: true", param="stream_options")


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: str | TokenIds | Prompts | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    add_special_tokens: bool | None = None

    def refuse_unsupported(self) -> None:
        """Also: more candidates than are returned."""
        super().refuse_unsupported()
        if self.best_of is not None and self.best_of > (self.n or 1):
            raise Unsupported(
                f"best_of: {self.best_of} is more than n ({self.n or 1}); ranking candidates is "
                "not supported",
                param="best_of",
            )


class ContentPart(RequestBody):
    """One part of a message; only text has a meaning here."""

    type: str
    text: str | None = None


class Message(RequestBody):
    """One message; fields beyond role and content reach the chat template."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message with its text parts joined.

        Raises:
            Unsupported: images, audio, files.
        """
        content = self.content
        if isinstance(content, list):
            content = "\n".join(_text_of(part) for part in content)
        return {**(self.model_extra or {}), "role": self.role, "content": content}


def _text_of(part: ContentPart) -> str:
    if part.type != "text" or part.text is None:
        raise Unsupported(
            f"messages: content of type {part.type!r} is not supported; send text", param="messages"
        )
    return part.text


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def refuse_unsupported(self) -> None:
        """Also: top_logprobs without logprobs, which OpenAI refuses too."""
        super().refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise Unsupported("top_logprobs needs logprobs: true", param="top_logprobs")


class TokenizeBody(RequestBody):
    """POST /tokenize: a prompt or messages."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(RequestBody):
    """POST /detokenize."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None


class ActivateBody(RequestBody):
    """POST /v1/variants/{name}/activate."""

    digest: Digest


class CanaryBody(RequestBody):
    """POST /v1/variants/{name}/canary."""

    digest: Digest
    percent: Annotated[float, Field(ge=0, le=100)]


class LoadAdapterBody(RequestBody):
    """POST /v1/load_lora_adapter, vLLM's names."""

    lora_name: VariantName
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


class UnloadAdapterBody(RequestBody):
    """POST /v1/unload_lora_adapter, vLLM's names."""

    lora_name: VariantName
    lora_int_id: Literal[None] | int = None
