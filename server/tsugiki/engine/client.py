"""EngineClient: all that the API knows of the engine. Plain data, no torch, no HTTP.

A thread (engine.local) implements it today; a process could tomorrow, without touching the API.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tsugiki.engine.request import FinishReason, SamplingParams, TokenLogprobs, VariantRef
from tsugiki.text.tokenizer import TextSide

VariantState = Literal["disk", "loading", "host", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The base (parent None) or a variant, as /v1/models shows it."""

    id: str
    parent: str | None
    digest: str | None
    codec: str | None
    bytes: int
    state: VariantState
    created: int  # unix seconds
    max_model_len: int


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """One version of a variant, as /v1/variants shows it."""

    name: str
    digest: str
    codec: str
    bytes: int  # of the file
    ratio: float  # honest: bf16 bytes of the changed tensors / file bytes
    state: VariantState
    active: bool  # the version that the bare name means
    pinned: bool
    references: int
    resident_bytes: int
    last_used: float | None  # unix seconds
    load_ms: float | None
    error: str | None = None
    coverage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One sequence to generate. `stop` strings are matched on detokenised text, not on tokens."""

    request_id: str
    variant: VariantRef
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class GenerationEvent:
    """What one step added to one request. The last event of a request carries finish_reason, and
    every accepted request gets exactly one such event."""

    text: str  # newly decodable text, stop strings removed
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # on the first event only
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token; None for an EOS token
    error: str | None = None  # with FinishReason.ERROR
    prompt_tokens: int = 0
    completion_tokens: int = 0
    variant_load_ms: float | None = None  # this request waited for a cold variant


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters for /metrics and /health; cumulative since start unless said."""

    waiting: int
    running: int
    loading: int
    kv_blocks_total: int
    kv_blocks_free: int
    steps: int
    preemptions: int
    last_batch_rows: int
    resident_variants: int
    resident_variant_bytes: int
    kernels: str
    device: str
    dtype: str
    threads: int


class EngineClient(Protocol):
    """The engine from the event loop's side. Methods that are not async answer from snapshots."""

    def models(self) -> list[ModelInfo]:
        """The base first, then the active version of every variant by name."""

    def resolve(self, model: str) -> VariantRef:
        """The base's id, a variant's name, or name@sha256:<at least 12 hex>.

        Raises:
            ModelNotFound: unknown; never falls back to the base.
        """

    def text(self, variant: VariantRef) -> TextSide:
        """Tokenizer, chat template, EOS ids and generation defaults that rule for this version."""

    def max_model_len(self) -> int:
        """Longest prompt + output, in tokens."""

    def submit(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """Admit and stream. Closing the generator (`aclose`) aborts the request.

        Raises (before the first event):
            ContextTooLong, Overloaded, Unavailable.
        """

    def variants(self) -> list[VariantInfo]:
        """Every version known, active ones first."""

    def upload_area(self) -> Path:
        """An existing directory for bodies that still arrive, on the registry's file system; what a
        killed server left in it is removed at start."""

    async def put_variant(
        self, name: str, path: Path, *, pin: bool, activate: bool
    ) -> tuple[VariantInfo, bool]:
        """Verify the uploaded file at `path` (in the upload area) and make it visible.

        Returns the version and whether it is new. The file is moved or removed.

        Raises:
            InvalidArtifact (and its children), StorageFull, InvalidRequest (bad name).
        """

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        """Convert the PEFT directory at `path` to a variant file and make it visible as `name`.

        Raises:
            InvalidArtifact (and its children), CompressionRefused, StorageFull.
        """

    async def delete_variant(self, name: str) -> int:
        """Stop new requests, wait for running ones, free all; returns bytes freed."""

    async def load_variant(self, name: str) -> VariantInfo:
        """Make the active version resident."""

    async def unload_variant(self, name: str) -> tuple[VariantInfo, int]:
        """Drop it from memory once idle; returns bytes freed."""

    async def pin_variant(self, name: str, pinned: bool) -> VariantInfo:
        """Keep it resident, or let the LRU take it."""

    async def rollback_variant(self, name: str) -> VariantInfo:
        """Make the previously active version the active one."""

    def stats(self) -> EngineStats:
        """Counters now."""

    def alive(self) -> bool:
        """The engine thread runs."""

    def draining(self) -> bool:
        """No new requests are taken."""

    async def start(self) -> None:
        """Start the threads; returns when the base serves."""

    async def stop(self, drain_seconds: float) -> None:
        """Refuse new work, finish running requests within the time, end the threads."""
