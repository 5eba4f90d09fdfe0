"""Changes to the variants of a running engine.

Owns: the order of steps of each management call (what becomes visible when, what waits for whom),
and telling of it. Lives on the event loop; files are touched on worker threads, memory through
variant_memory.py. Does not know generation.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from tsugiki.engine.probe_gate import ProbeGate
from tsugiki.engine.request import VariantRef
from tsugiki.engine.variant_events import VariantEvents
from tsugiki.engine.variant_info import HistoryEntry, VariantEventKind, VariantInfo
from tsugiki.engine.variant_memory import VariantMemory
from tsugiki.engine.variant_view import VariantView
from tsugiki.errors import Conflict, ModelNotFound, Unsupported
from tsugiki.variants.registry import Registry
from tsugiki.variants.version import Version

T = TypeVar("T")
WORKERS = 4
UPLOADS_AT_A_TIME = 2  # that are verified; others wait with their file on disk
ConvertAdapter = Callable[[Path, Path], None]  # PEFT directory, variant file to write


@dataclass(slots=True)
class VariantService:
    """What a client may do to variants."""

    view: VariantView
    memory: VariantMemory
    events: VariantEvents
    convert_adapter: ConvertAdapter | None = None
    gate: ProbeGate = field(init=False)
    _workers: ThreadPoolExecutor = field(init=False)
    _verifying: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.gate = ProbeGate(self.view)
        # Their own: uploads that take long must not keep prompts from being tokenised, nor all of
        # these from a rollback.
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="tsugiki-variants")
        self._verifying = asyncio.Semaphore(UPLOADS_AT_A_TIME)

    @property
    def registry(self) -> Registry:
        """Names and files."""
        return self.view.registry

    def resolve(self, model: str, user: str | None = None) -> VariantRef:
        """See EngineClient.resolve."""
        if model == self.view.base.id:
            return VariantRef(model, None)
        version = self.registry.resolve(model, user)
        return VariantRef(version.name, version.digest)

    def check_named(self, variant: VariantRef) -> None:
        """Raise ModelNotFound when this version was deleted since it was resolved.

        Its file may be there still: it is purged once the requests that are open now have ended.
        """
        if variant.digest is not None:
            self.registry.resolve(f"{variant.name}@{variant.digest}")

    async def put(
        self, name: str, path: Path, *, pin: bool, activate: bool, signature: str | None = None
    ) -> tuple[VariantInfo, bool]:
        """See EngineClient.put_variant. A pinned one starts loading; this does not wait for it."""
        before, tried = self.registry.active(name), set[str]()
        trial = self.gate.trials(tried)(name) if activate else None
        put = partial(self.registry.put, name, path, activate, signature, trial)
        try:
            async with self._verifying:
                version, new = await self._on_worker(put)
        except BaseException:
            await self.free(tried)
            raise
        self.view.open_requests.wake()  # whoever waits to free this very version need not
        if new:
            self._tell(version, "uploaded", f"{version.bytes} bytes")
        if activate:
            await self._replaced(before, version, "activated")
        if pin:
            await self.memory.pin_and_load(version.digest)
        return self.view.now(version), new

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        """See EngineClient.load_adapter."""
        if self.convert_adapter is None:
            raise Unsupported("this server cannot convert PEFT adapters; upload a variant file")
        area = await self._on_worker(self.registry.uploads)
        file = area / f"{uuid.uuid4().hex}.safetensors"
        try:
            await self._on_worker(self.convert_adapter, path, file)
            info, _ = await self.put(name, file, pin=False, activate=True)
        finally:
            await self._on_worker(partial(file.unlink, missing_ok=True))
        return info

    async def activate(self, name: str, digest: str) -> VariantInfo:
        """See EngineClient.activate_variant."""
        await self._prove(self.registry.resolve(f"{name}@{digest}"))
        before = self.registry.active(name)
        version = await self._on_worker(self.registry.activate, name, digest)
        await self._replaced(before, version, "activated")
        return self.view.now(version)

    async def rollback(self, name: str) -> VariantInfo:
        """See EngineClient.rollback_variant."""
        await self._prove(await self._on_worker(self.registry.rollback_target, name))
        before = self.registry.active(name)
        version = await self._on_worker(self.registry.rollback, name)
        await self._replaced(before, version, "rolled_back")
        return self.view.now(version)

    async def canary(self, name: str, digest: str, percent: float) -> VariantInfo:
        """See EngineClient.canary_variant."""
        if percent:
            await self._prove(self.registry.resolve(f"{name}@{digest}"))
        version = await self._on_worker(self.registry.canary, name, digest, percent)
        self._tell(version, "canary", f"{percent:g} %")
        return self.view.now(version)

    async def history(self, name: str) -> tuple[HistoryEntry, ...]:
        """See EngineClient.variant_history."""
        entries = await self._on_worker(self.registry.history, name)
        return tuple(HistoryEntry(e.digest, e.at, e.action, e.percent) for e in entries)

    async def delete(self, name: str) -> int:
        """See EngineClient.delete_variant; bytes of memory and of files."""
        deleted = await self._on_worker(self.registry.delete, name)
        for version in deleted:
            self._tell(version, "deleted")
        return await self.free(version.digest for version in deleted)

    async def delete_version(self, name: str, digest: str) -> int:
        """See EngineClient.delete_version."""
        version = await self._on_worker(self.registry.delete_version, name, digest)
        self._tell(version, "deleted")
        return await self.free([version.digest])

    async def load(self, name: str) -> VariantInfo:
        """See EngineClient.load_variant.

        Raises:
            Conflict: it cannot be loaded; says why.
        """
        version = self.registry.resolve(name)
        await self._load(version)
        await self._prove(version)
        return self.view.now(version)

    async def unload(self, name: str) -> tuple[VariantInfo, int]:
        """See EngineClient.unload_variant."""
        version = self._active(name)
        freed = await self.memory.unload(version.digest)
        return self.view.now(version), freed

    async def pin(self, name: str, pinned: bool) -> VariantInfo:
        """See EngineClient.pin_variant. Pinning loads it too."""
        version = self.registry.resolve(name) if pinned else self._active(name)
        await self.memory.pin(version.digest, pinned)
        if pinned:
            await self._load(version)
            await self._prove(version)
        return self.view.now(version)

    async def rescan(self) -> set[str]:
        """Take in what the operator did to the directory; the digests that no name has since."""
        before, tried = self._digests(), set[str]()
        for change in await self._on_worker(self.registry.rescan, self.gate.trials(tried)):
            kind = _FILE_KINDS[change.kind]
            self.events.publish(change.name, change.digest, kind, change.error)
        return (before | tried) - self._digests()

    async def free(self, digests: Iterable[str]) -> int:
        """Memory and files of versions that no name has any more, each once its requests end."""
        freed = 0
        for digest in set(digests) - {""}:
            if self._named(digest):
                continue
            await self.view.open_requests.none_of(digest, unless=partial(self._named, digest))
            if self._named(digest):
                continue  # it was uploaded again meanwhile
            freed += await self.memory.unload(digest)
            await self.memory.forget(digest)
            freed += await self._on_worker(self.registry.purge, digest)
            self.view.forget(digest)
            self.gate.probes.forget(digest)
        return freed

    def close(self) -> None:
        """Finish the changes in progress; no more come."""
        self._workers.shutdown()
        self.registry.close()

    async def _on_worker(self, function: Callable[..., T], *arguments: object) -> T:
        work = partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def _prove(self, version: Version) -> None:
        """Ask a version its probe before a name means it; one that failed is loaded once more."""
        if self.gate.probes.failed(version.digest):
            await self._load(version)
        await self.gate.prove_again(version)

    async def _replaced(
        self, before: Version | None, version: Version, kind: VariantEventKind
    ) -> None:
        """A name means another version now. A pin belongs to the name, so it moves along."""
        if before is None:
            self._tell(version, kind)
            return
        if before.digest == version.digest:
            if kind == "rolled_back":
                self._tell(version, kind, "the canary ended")
            return
        self._tell(version, kind, f"instead of {before.digest}")
        await self._move_pins(version)

    async def _move_pins(self, active: Version) -> None:
        memory, versions = self.view.residency.snapshot(), self.registry.versions()
        elsewhere = {v.digest for v in versions if v.active}
        pinned = {v.digest for v in versions if v.name == active.name} & {
            digest for digest, info in memory.items() if info.pinned
        }
        for digest in pinned - elsewhere:
            await self.memory.pin(digest, False)
        if pinned - {active.digest}:
            await self.memory.pin_and_load(active.digest)

    async def _load(self, version: Version) -> None:
        outcome = await self.memory.load(version.digest)
        if outcome.variant is None:
            raise Conflict(f"variant {version.name!r} cannot be loaded: {outcome.error}")

    def _active(self, name: str) -> Version:
        """The active version, servable or not.

        Raises:
            ModelNotFound: there is none.
        """
        version = self.registry.active(name)
        if version is None:
            raise ModelNotFound(f"there is no variant {name!r}; GET /v1/variants lists them")
        return version

    def _named(self, digest: str) -> bool:
        return digest in self._digests()

    def _digests(self) -> set[str]:
        return {version.digest for version in self.registry.versions() if version.digest}

    def _tell(self, version: Version, kind: VariantEventKind, detail: str | None = None) -> None:
        self.events.publish(version.name, version.digest, kind, detail)


_FILE_KINDS: dict[str, VariantEventKind] = {
    "added": "file_added",
    "changed": "file_changed",
    "removed": "file_removed",
    "failed": "file_failed",
}
