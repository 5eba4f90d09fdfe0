"""Answers, as OpenAI defines them: what /openapi.json promises.

Owns: the response models and the documented error statuses. The generation routes build the same
shapes as plain dictionaries, once per step; tests hold the two together. Does not know the engine.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tsugiki.engine.variant_info import VariantState


class Answer(BaseModel):
    """Room for additions: clients must ignore fields they do not know."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Answer):
    """Every answer that is not 2xx."""

    error: ErrorDetail


class PromptTokensDetails(Answer):
    """Of the prompt tokens, those whose computation was reused."""

    cached_tokens: int


class Usage(Answer):
    """Tokens of one request; `variant_load_ms` when it waited for a cold variant."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    variant_load_ms: float | None = None


class CompletionLogprobs(Answer):
    """Aligned lists, one entry per token of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None  # with return_token_ids


class Completion(Answer):
    """POST /v1/completions; a chunk of a stream has the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatMessage(Answer):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class TopLogprob(Answer):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A chosen token, with the likeliest instead of it."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """One entry per token of the message."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None  # with return_token_ids


class ChatCompletion(Answer):
    """POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ModelCard(Answer):
    """The base (parent null) or a variant."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tsugiki"
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None
    codec: str | None
    bytes: int
    state: VariantState


class ModelList(Answer):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LoadTimings(Answer):
    """Milliseconds of the last load."""

    read: float
    verify: float
    stage: float


class VariantCard(Answer):
    """One version of a variant."""

    name: str
    digest: str
    codec: str
    bytes: int
    ratio: float
    state: VariantState
    active: bool
    pinned: bool
    references: int
    resident_bytes: int
    last_used: float | None
    load_ms: float | None
    error: str | None = None
    coverage: dict[str, Any] = {}
    timings: LoadTimings | None = None
    canary_percent: float = 0.0
    signed_by: str | None = None
    bytes_freed: int | None = None


class VariantList(Answer):
    """GET /v1/variants."""

    object: Literal["list"] = "list"
    data: list[VariantCard]


class VariantVersions(VariantCard):
    """GET /v1/variants/{name}: the active version, and all of them."""

    versions: list[VariantCard]


class HistoryItem(Answer):
    """Something that was done to a variant."""

    digest: str
    at: float
    action: str
    percent: float | None = None  # of a canary


class VariantHistory(Answer):
    """GET /v1/variants/{name}/history, oldest first."""

    object: Literal["list"] = "list"
    name: str
    data: list[HistoryItem]


class UploadProgress(Answer):
    """308: what has arrived of a resumable upload."""

    upload_id: str
    received: int
    total: int


class Deleted(Answer):
    """What a delete gave back."""

    name: str
    deleted: bool
    bytes_freed: int


class Tokens(Answer):
    """POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Text(Answer):
    """POST /detokenize."""

    prompt: str


class Health(Answer):
    """GET /health and GET /ready."""

    status: str


def documented_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: our error shape for each status it can have."""
    always = (400, 401, 413, 422, 500, 503)
    return {status: {"model": ErrorAnswer} for status in sorted({*always, *statuses})}
