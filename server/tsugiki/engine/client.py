"""EngineClient: all that the API knows of the engine. Plain data, no torch, no HTTP.

A thread (engine.local) implements it today; a process could tomorrow, without touching the API.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tsugiki.engine.request import FinishReason, SamplingParams, TokenLogprobs, VariantRef
from tsugiki.engine.variant_info import HistoryEntry, ModelInfo, VariantEvent, VariantInfo
from tsugiki.text.tokenizer import TextSide


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
    weight: float = 1.0  # of the tenant
    priority: int = 0  # lower goes first
    timeout: float | None = None  # seconds from now; then it ends with FinishReason.TIMEOUT
    cache_salt: str | None = None  # only requests of the same salt share cached prefixes
    final_only: bool = False  # one event, at the end


@dataclass(slots=True)  # not frozen: one is made per token, and that takes three times as long
class GenerationEvent:
    """What one step added to one request. The last event of a request carries finish_reason, and
    every accepted request gets exactly one such event. Nobody changes one."""

    text: str  # newly decodable text, stop strings removed
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # on the first event only
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token; None for an EOS token
    error: str | None = None  # with FinishReason.ERROR
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    variant_load_ms: float | None = None  # this request waited for a cold variant
    first_token: float | None = None  # when it came, seconds of the monotonic clock
    gaps: tuple[float, ...] = ()  # seconds per token since the step before, one entry a step


Deliver = Callable[[GenerationEvent], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """How the model is computed; for /health and system_fingerprint."""

    kernels: str
    device: str
    dtype: str
    threads: int
    kernels_fallback: str | None = None  # why --kernels auto took the reference


@dataclass(frozen=True, slots=True)
class TierInfo:
    """One memory tier of the variants. Counters are cumulative since start."""

    name: str  # "host" or "device"
    budget_bytes: int
    bytes: int
    shared_bytes: int  # of `bytes`: held once for several variants
    variants: int
    hits: int
    misses: int
    evictions: int


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """The one buffer in which variants lie on a GPU. Moves are counted since start."""

    nbytes: int
    free_bytes: int
    largest_free_bytes: int  # in one piece
    beside_bytes: int  # of variants that found no room in it, yet
    moves: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class LoadTotals:
    """All loads since start, and the seconds that their parts took."""

    count: int = 0
    read: float = 0.0
    verify: float = 0.0
    stage: float = 0.0


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
    tiers: tuple[TierInfo, ...] = ()
    room: RoomInfo | None = None  # None: each variant has memory of its own
    loads: LoadTotals = LoadTotals()
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # and found
    drafted_tokens: int = 0  # by prompt lookup
    accepted_tokens: int = 0  # of them: those that were right
    kernels_fallback: str | None = None  # why --kernels auto took the reference


class EngineClient(Protocol):
    """The engine from the event loop's side. Methods that are not async answer from snapshots."""

    def base(self) -> ModelInfo:
        """The base."""

    def machine(self) -> Machine:
        """How it computes."""

    def models(self) -> list[ModelInfo]:
        """The base first, then the active version of every variant by name."""

    def resolve(self, model: str, user: str | None = None) -> VariantRef:
        """The base's id, a variant's name, or name@sha256:<at least 12 hex>.

        Where a canary runs, a share of the `user`s gets its version for the bare name, each always
        the same one; without `user` it is the active version.

        Raises:
            ModelNotFound: unknown; never falls back to the base.
        """

    def text(self, variant: VariantRef) -> TextSide:
        """Tokenizer, chat template, EOS ids and generation defaults that rule for this version."""

    def max_model_len(self) -> int:
        """Longest prompt + output, in tokens."""

    def open(self, spec: GenerationSpec, deliver: Deliver) -> None:
        """Admit; every event of the request is given to `deliver` on the event loop, all of a step
        before anything else runs there.

        Raises:
            ContextTooLong, Overloaded, Unavailable, InvalidRequest.
        """

    def abort(self, request_id: str) -> None:
        """End a request whose client is gone; nothing happens when it has ended."""

    def submit(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """`open` as a stream. Closing the generator (`aclose`) aborts the request.

        Raises (before the first event):
            As `open`.
        """

    def variants(self) -> list[VariantInfo]:
        """Every version known, active ones first."""

    def upload_area(self) -> Path:
        """An existing directory for bodies that still arrive, on the registry's file system. What a
        killed server left in it is removed at start, but for `*.partial*`. Touches the disk."""

    async def put_variant(
        self, name: str, path: Path, *, pin: bool, activate: bool, signature: str | None = None
    ) -> tuple[VariantInfo, bool]:
        """Verify the uploaded file at `path` (in the upload area) and make it visible.

        Returns the version and whether it is new. The file is moved or removed.
        `signature` is base64 of ed25519 over the file's digest string.

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

    async def delete_version(self, name: str, digest: str) -> int:
        """The same for one version that is not the active one (Conflict)."""

    async def load_variant(self, name: str) -> VariantInfo:
        """Make the active version resident."""

    async def unload_variant(self, name: str) -> tuple[VariantInfo, int]:
        """Drop it from memory once idle; returns bytes freed."""

    async def pin_variant(self, name: str, pinned: bool) -> VariantInfo:
        """Keep it resident, or let the LRU take it."""

    async def rollback_variant(self, name: str) -> VariantInfo:
        """Make the previously active version the active one."""

    async def activate_variant(self, name: str, digest: str) -> VariantInfo:
        """Make a known version (a digest, or 12 hex of one) the active one; a canary ends."""

    async def canary_variant(self, name: str, digest: str, percent: float) -> VariantInfo:
        """Give this version to so many percent of the name's users; 0 ends it."""

    async def variant_history(self, name: str) -> tuple[HistoryEntry, ...]:
        """What was done to a name, oldest first.

        Raises:
            ModelNotFound: there is no such name.
        """

    def events(self, after: int | None = None) -> AsyncGenerator[VariantEvent, None]:
        """Changes of variants as they happen; first those after sequence number `after` that are
        still remembered. Ends when the engine stops, and for a consumer that fell behind."""

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
