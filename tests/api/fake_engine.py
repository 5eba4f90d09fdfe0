"""An engine at the EngineClient seam that says what a test tells it to."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tsugiki.engine.client import Deliver, EngineStats, GenerationEvent, GenerationSpec, Machine
from tsugiki.engine.events import merged
from tsugiki.engine.request import FinishReason, TokenLogprobs, VariantRef
from tsugiki.engine.variant_info import HistoryEntry, ModelInfo, VariantEvent, VariantInfo
from tsugiki.errors import (
    Conflict,
    CorruptArtifact,
    InvalidRequest,
    ModelNotFound,
    TsugikiError,
)

BASE = "org/base"
BASE_DIGEST = "sha256:" + "b" * 64
MAX_MODEL_LEN = 64
VOCABULARY = 256
EOS = 0


class FakeText:
    """One token per character: ids are code points below 256."""

    eos_token_ids = frozenset({EOS})
    vocab_size = VOCABULARY
    byte_fallback_ids: frozenset[int] = frozenset()
    token_bytes = None
    longest_token = 1

    def __init__(self, defaults: Mapping[str, Any] | None = None, template: bool = True) -> None:
        self.generation_defaults = dict(defaults or {})
        self._template = template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [min(ord(character), VOCABULARY - 1) for character in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def token(self, token_id: int) -> str:
        return "\N{REPLACEMENT CHARACTER}" if token_id >= 0xF0 else chr(token_id)

    def chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        if not self._template:
            raise InvalidRequest("this model has no chat template", param="messages")
        return self.encode("".join(f"{m['role'][0]}:{m['content']}\n" for m in messages))


@dataclass
class FakeEngine:
    """Answers every sequence with `answer`, one token (character) an event."""

    uploads: Path
    answer: str = "hello"
    script: Callable[[GenerationSpec], AsyncGenerator[GenerationEvent, None]] | None = None
    submit_error: Exception | None = None
    variant_error: TsugikiError | None = None
    is_alive: bool = False
    is_draining: bool = False
    specs: list[GenerationSpec] = field(default_factory=list)
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    stopped_with: float | None = None
    uploaded: bytes = b""
    text_side: FakeText = field(default_factory=FakeText)
    versions: dict[str, VariantInfo] = field(default_factory=dict)
    canary_users: dict[str, VariantRef] = field(default_factory=dict)
    signatures: list[str | None] = field(default_factory=list)
    happened: list[VariantEvent] = field(default_factory=list)
    more_events: asyncio.Event | None = None  # None: the stream ends after `happened`
    verifying: asyncio.Event | None = None  # put_variant waits for it

    def add(self, name: str, codec: str = "deltadq", content: bytes = b"") -> VariantInfo:
        digest = "sha256:" + hashlib.sha256(name.encode() + content).hexdigest()
        info = VariantInfo(
            name=name,
            digest=digest,
            codec=codec,
            bytes=len(content),
            ratio=100.0,
            state="ready",
            active=True,
            pinned=False,
            references=0,
            resident_bytes=1000,
            last_used=None,
            load_ms=None,
        )
        self.versions[name] = info
        return info

    def base(self) -> ModelInfo:
        return ModelInfo(BASE, None, BASE_DIGEST, None, 1, "ready", 1, MAX_MODEL_LEN)

    def machine(self) -> Machine:
        return Machine("reference", "cpu", "float32", 1)

    def models(self) -> list[ModelInfo]:
        rest = [
            ModelInfo(v.name, BASE, v.digest, v.codec, v.bytes, v.state, 1, MAX_MODEL_LEN)
            for v in self.versions.values()
        ]
        return [self.base(), *rest]

    def resolve(self, model: str, user: str | None = None) -> VariantRef:
        if model == BASE:
            return VariantRef(BASE, None)
        if user in self.canary_users:
            return self.canary_users[user]
        name, _, digest = model.partition("@")
        info = self.versions.get(name)
        if info is None or not info.digest.startswith(digest):
            raise ModelNotFound(f"no model {model!r}")
        return VariantRef(name, info.digest)

    def text(self, variant: VariantRef) -> FakeText:
        return self.text_side

    def max_model_len(self) -> int:
        return MAX_MODEL_LEN

    def open(self, spec: GenerationSpec, deliver: Deliver) -> None:
        if self.submit_error:
            raise self.submit_error
        self.specs.append(spec)
        self.running[spec.request_id] = asyncio.create_task(self._run(spec, deliver))

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.running[request_id].cancel()

    async def _run(self, spec: GenerationSpec, deliver: Deliver) -> None:
        """Tell what the script says; whatever it raises is the engine's failure."""
        told = []
        try:
            async for event in (self.script or self.say)(spec):
                told.append(event)
                if event.finish_reason or not spec.final_only:
                    deliver(merged(told) if spec.final_only else event)
        except Exception as error:
            deliver(GenerationEvent("", (), finish_reason=FinishReason.ERROR, error=str(error)))

    def submit(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        raise NotImplementedError("the API opens requests")

    async def say(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """The answer, cut at max_tokens."""
        said = self.answer[: spec.params.max_tokens]
        for position, character in enumerate(said):
            last = position == len(said) - 1
            cut = len(self.answer) > spec.params.max_tokens
            reason = (FinishReason.LENGTH if cut else FinishReason.STOP) if last else None
            event = token_event(character, spec, first=position == 0)
            yield replace(event, finish_reason=reason)
            await one_step()

    def variants(self) -> list[VariantInfo]:
        return list(self.versions.values())

    def upload_area(self) -> Path:
        self.uploads.mkdir(parents=True, exist_ok=True)
        return self.uploads

    async def put_variant(
        self, name: str, path: Path, *, pin: bool, activate: bool, signature: str | None = None
    ) -> tuple[VariantInfo, bool]:
        self.uploaded = path.read_bytes()
        self.signatures.append(signature)
        if self.verifying is not None:
            await self.verifying.wait()
        if self.variant_error:
            raise self.variant_error
        if not self.uploaded:
            raise CorruptArtifact("an empty file")
        known = self.versions.get(name)
        info = replace(self.add(name, content=self.uploaded), pinned=pin, active=activate)
        self.versions[name] = info
        return info, known is None or known.digest != info.digest

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        return self.add(name, codec="lora", content=str(path).encode())

    async def delete_variant(self, name: str) -> int:
        self._known(name)
        del self.versions[name]
        return 1000

    async def delete_version(self, name: str, digest: str) -> int:
        if self._known(name).digest.startswith(digest):
            raise Conflict(f"{digest} is the active version of {name!r}")
        raise ModelNotFound(f"{name!r} has no version {digest}")

    async def load_variant(self, name: str) -> VariantInfo:
        return self._known(name)

    async def unload_variant(self, name: str) -> tuple[VariantInfo, int]:
        return replace(self._known(name), state="disk", resident_bytes=0), 1000

    async def pin_variant(self, name: str, pinned: bool) -> VariantInfo:
        return replace(self._known(name), pinned=pinned)

    async def rollback_variant(self, name: str) -> VariantInfo:
        self._known(name)
        raise Conflict(f"{name!r} has no earlier version")

    async def activate_variant(self, name: str, digest: str) -> VariantInfo:
        return self._version(name, digest)

    async def canary_variant(self, name: str, digest: str, percent: float) -> VariantInfo:
        info = replace(self._version(name, digest), canary_percent=percent)
        self.versions[name] = info
        return info

    async def variant_history(self, name: str) -> tuple[HistoryEntry, ...]:
        return (HistoryEntry(self._known(name).digest, 1.5, "upload"),)

    async def events(self, after: int | None = None) -> AsyncGenerator[VariantEvent, None]:
        for event in self.happened:
            if after is None or event.sequence > after:
                yield event
        if self.more_events is not None:
            await self.more_events.wait()

    def stats(self) -> EngineStats:
        return EngineStats(
            *(1, 2, 0, 100, 50, 7, 0, 3, 1, 1000, "reference", "cpu", "float32", 1),
            prefix_cache_queries=40,
            prefix_cache_hits=30,
            drafted_tokens=21,
            accepted_tokens=14,
        )

    def alive(self) -> bool:
        return self.is_alive

    def draining(self) -> bool:
        return self.is_draining

    async def start(self) -> None:
        self.is_alive, self.is_draining = True, False

    async def stop(self, drain_seconds: float) -> None:
        self.stopped_with = drain_seconds
        self.is_alive, self.is_draining = False, True

    def _version(self, name: str, digest: str) -> VariantInfo:
        if not self._known(name).digest.startswith(digest):
            raise ModelNotFound(f"{name!r} has no version {digest}")
        return self.versions[name]

    def _known(self, name: str) -> VariantInfo:
        if name not in self.versions:
            raise ModelNotFound(f"no variant {name!r}")
        return self.versions[name]


async def one_step() -> None:
    """Let everybody who waits for the events so far take them."""
    for _ in range(10):
        await asyncio.sleep(0)


def logprobs_of(token_id: int, alternatives: int) -> TokenLogprobs:
    """The token itself at -0.5, and its successors behind it."""
    top = tuple((token_id + i, -0.5 - i) for i in range(alternatives))
    return TokenLogprobs(token_id, -0.5, 1, top)


def token_event(character: str, spec: GenerationSpec, *, first: bool) -> GenerationEvent:
    """One generated character, with the log-probabilities that were asked for."""
    token_id, params = ord(character), spec.params
    logprobs = () if params.logprobs is None else (logprobs_of(token_id, params.logprobs),)
    prompt = None
    if first and params.prompt_logprobs is not None:
        ids = spec.prompt_token_ids
        prompt = (None, *(logprobs_of(i, params.prompt_logprobs) for i in ids[1:]))
    now = time.monotonic()
    return GenerationEvent(
        character,
        (token_id,),
        logprobs,
        prompt,
        prompt_tokens=len(spec.prompt_token_ids),
        first_token=now,
        gaps=() if first else (0.01,),
    )


def usage_of(prompt: int, generated: int, cached: int = 0) -> dict[str, Any]:
    """The usage object of an answer."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
