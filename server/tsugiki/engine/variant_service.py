"""The variants of a running engine, as clients see and manage them.

Owns: the order of steps of each management call (what becomes visible when, what waits for whom),
and the joined view of files and memory. Lives on the event loop; files are touched on worker
threads, memory on the engine thread. Does not know generation.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tsugiki.engine.client import ModelInfo, VariantInfo
from tsugiki.engine.core import EngineCore
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.request import VariantRef
from tsugiki.engine.thread import EngineThread
from tsugiki.errors import Conflict, ModelNotFound, Unsupported
from tsugiki.text.huggingface import HfTextSide
from tsugiki.text.tokenizer import TextSide
from tsugiki.variants.loader import LoadOutcome
from tsugiki.variants.registry import Registry
from tsugiki.variants.residency import Residency, ResidencyInfo
from tsugiki.variants.version import Version

ConvertAdapter = Callable[[Path, Path], None]  # PEFT directory, variant file to write


@dataclass(slots=True)
class VariantService:
    """Registry and residency together, beside the base."""

    base: ModelInfo
    base_text: HfTextSide
    registry: Registry
    residency: Residency  # only snapshots here: the rest is the engine thread's
    thread: EngineThread
    open_requests: OpenRequests
    convert_adapter: ConvertAdapter | None = None
    _texts: dict[str, TextSide] = field(default_factory=dict)

    def resolve(self, model: str) -> VariantRef:
        """See EngineClient.resolve."""
        if model == self.base.id:
            return VariantRef(model, None)
        version = self.registry.resolve(model)
        return VariantRef(version.name, version.digest)

    def check_known(self, variant: VariantRef) -> None:
        """Raise ModelNotFound when this version was deleted since it was resolved."""
        if variant.digest is not None:
            self.registry.path(variant.digest)

    def text(self, variant: VariantRef) -> TextSide:
        """See EngineClient.text."""
        digest = variant.digest
        if digest is None:
            return self.base_text
        if digest not in self._texts:
            header = self.registry.resolve(f"{variant.name}@{digest}").header
            stated = None if header is None else header.text
            self._texts[digest] = self.base_text.for_variant(stated)
        return self._texts[digest]

    def models(self) -> list[ModelInfo]:
        """See EngineClient.models."""
        states = self.residency.snapshot()
        return [self.base] + [
            self._model(version, states) for version in self.registry.versions() if version.active
        ]

    def variants(self) -> list[VariantInfo]:
        """See EngineClient.variants."""
        states = self.residency.snapshot()
        return [self._info(version, states) for version in self.registry.versions()]

    async def put(
        self, name: str, path: Path, *, pin: bool, activate: bool
    ) -> tuple[VariantInfo, bool]:
        """See EngineClient.put_variant. A pinned one starts loading; this does not wait for it."""
        version, new = await asyncio.to_thread(self.registry.put, name, path, activate)
        if pin:
            await self.thread.call(lambda core: core.variants.pin(version.digest, True))
            self.thread.put(lambda core: core.load(version.digest, lambda outcome: None))
        return self._now(version), new

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        """See EngineClient.load_adapter."""
        if self.convert_adapter is None:
            raise Unsupported("this server cannot convert PEFT adapters; upload a variant file")
        file = self.registry.uploads() / f"{uuid.uuid4().hex}.safetensors"
        try:
            await asyncio.to_thread(self.convert_adapter, path, file)
            info, _ = await self.put(name, file, pin=False, activate=True)
        finally:
            file.unlink(missing_ok=True)
        return info

    async def delete(self, name: str) -> int:
        """See EngineClient.delete_variant; bytes of memory and of files."""
        deleted = await asyncio.to_thread(self.registry.delete, name)
        elsewhere = {version.digest for version in self.registry.versions()}
        digests = {version.digest for version in deleted if version.digest} - elsewhere
        freed = 0
        for digest in digests:
            freed += await self._unload(digest)
            await self.thread.call(partial(_forget, digest))
            freed += await asyncio.to_thread(self.registry.purge, digest)
            self._texts.pop(digest, None)
        return freed

    async def load(self, name: str) -> VariantInfo:
        """See EngineClient.load_variant.

        Raises:
            Conflict: it cannot be loaded; says why.
        """
        version = self.registry.resolve(name)
        await self._load(version)
        return self._now(version)

    async def unload(self, name: str) -> tuple[VariantInfo, int]:
        """See EngineClient.unload_variant."""
        version = self._active(name)
        freed = await self._unload(version.digest)
        return self._now(version), freed

    async def pin(self, name: str, pinned: bool) -> VariantInfo:
        """See EngineClient.pin_variant. Pinning loads it too."""
        version = self.registry.resolve(name) if pinned else self._active(name)
        await self.thread.call(lambda core: core.variants.pin(version.digest, pinned))
        if pinned:
            await self._load(version)
        return self._now(version)

    async def rollback(self, name: str) -> VariantInfo:
        """See EngineClient.rollback_variant."""
        return self._now(await asyncio.to_thread(self.registry.rollback, name))

    async def _load(self, version: Version) -> None:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[LoadOutcome] = loop.create_future()

        def loaded(outcome: LoadOutcome) -> None:
            loop.call_soon_threadsafe(_resolve, result, outcome)

        outcome = await self.thread.answered(result, lambda core: core.load(version.digest, loaded))
        if outcome.variant is None:
            raise Conflict(f"variant {version.name!r} cannot be loaded: {outcome.error}")

    async def _unload(self, digest: str) -> int:
        while True:
            await self.open_requests.none_of(digest)
            try:
                return await self.thread.call(lambda core: core.unload(digest))
            except Conflict:
                continue  # a request came in between: wait for that one too

    def _active(self, name: str) -> Version:
        """The active version, servable or not.

        Raises:
            ModelNotFound: there is none.
        """
        version = self.registry.active(name)
        if version is None:
            raise ModelNotFound(f"there is no variant {name!r}; GET /v1/variants lists them")
        return version

    def _now(self, version: Version) -> VariantInfo:
        """The version as it stands after a change."""
        known = [v for v in self.registry.versions() if v.name == version.name]
        current = next((v for v in known if v.digest == version.digest), version)
        return self._info(current, self.residency.snapshot())

    def _info(self, version: Version, states: Mapping[str, ResidencyInfo]) -> VariantInfo:
        memory = states.get(version.digest, ResidencyInfo())
        return VariantInfo(
            name=version.name,
            digest=version.digest,
            codec=version.codec,
            bytes=version.bytes,
            ratio=version.ratio,
            state="failed" if version.error else memory.state,
            active=version.active,
            pinned=memory.pinned,
            references=self.open_requests.of(version.digest),
            resident_bytes=memory.resident_bytes,
            last_used=memory.last_used,
            load_ms=memory.load_ms,
            error=version.error or memory.error,
            coverage=_coverage(version),
        )

    def _model(self, version: Version, states: Mapping[str, ResidencyInfo]) -> ModelInfo:
        memory = states.get(version.digest, ResidencyInfo())
        return ModelInfo(
            id=version.name,
            parent=self.base.id,
            digest=version.digest,
            codec=version.codec,
            bytes=version.bytes,
            state="failed" if version.error else memory.state,
            created=version.created,
            max_model_len=self.base.max_model_len,
        )


def _forget(digest: str, core: EngineCore) -> None:
    core.variants.forget(digest)


def _resolve(result: "asyncio.Future[LoadOutcome]", outcome: LoadOutcome) -> None:
    if not result.done():
        result.set_result(outcome)


def _coverage(version: Version) -> Mapping[str, Any]:
    """How much of the base it changes, as counted when the file was verified."""
    counted = None if version.header is None else version.header.coverage
    return {} if counted is None else asdict(counted)
