"""LocalEngine: the EngineClient of this process, over one engine thread.

Owns: taking requests in, giving their events out, and the life of the engine. Lives on the event
loop. Does not know batches (core.py), tensors (model_runner.py) or HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from pathlib import Path

from tsugiki.engine.admission import Admission
from tsugiki.engine.client import Deliver, EngineStats, GenerationEvent, GenerationSpec, Machine
from tsugiki.engine.core import EngineCore
from tsugiki.engine.mailbox import Mailbox
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.request import FinishReason, SamplingParams, VariantRef
from tsugiki.engine.stats import engine_stats
from tsugiki.engine.step_event import StepEvent
from tsugiki.engine.stream import EventStream, OpenRequest
from tsugiki.engine.thread import EngineThread
from tsugiki.engine.variant_info import HistoryEntry, ModelInfo, VariantEvent, VariantInfo
from tsugiki.engine.variant_service import VariantService
from tsugiki.engine.variant_watch import VariantWatch
from tsugiki.errors import EngineFailure, InvalidRequest, TsugikiError, Unavailable
from tsugiki.text.tokenizer import TextSide
from tsugiki.variants.loader import BackgroundLoader

logger = logging.getLogger(__name__)

JOIN_SECONDS = 10.0  # a step that takes longer than this is left to die with the process


class LocalEngine:
    """See EngineClient. `build.create_engine` composes one."""

    def __init__(
        self,
        core: EngineCore,
        thread: EngineThread,
        service: VariantService,
        admission: Admission,
        loader: BackgroundLoader,
        machine: Machine,
        *,
        watch_seconds: float = 0.0,
    ) -> None:
        self._core = core  # read only here: its state belongs to the thread
        self._thread = thread
        self._service = service
        self._admission = admission
        self._loader = loader
        self._machine = machine
        self._view = service.view
        self._watch = VariantWatch(service, watch_seconds)
        self._open: OpenRequests = service.view.open_requests
        self._draining = False
        self._death: str | None = None
        self._gate = service.gate
        self._gate.probes.connect(self._submit_probe, self._take_out)
        self._proving: set[asyncio.Task[None]] = set()

    def open(self, spec: GenerationSpec, deliver: Deliver) -> None:
        """See EngineClient.open."""
        self._check_open()
        self._service.check_named(spec.variant)
        proven = self._gate.proven(spec.variant)
        opened = self._admit(spec, deliver)
        if proven:
            self._enter(opened)
        else:
            task = asyncio.create_task(self._enter_proven(opened))
            self._proving.add(task)
            task.add_done_callback(self._proving.discard)

    def submit(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """See EngineClient.submit. Raises at once, not at the first event."""
        events: Mailbox[GenerationEvent] = Mailbox()
        self.open(spec, events.put)
        return EventStream(spec.request_id, events, self.abort)

    def _submit_probe(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """As `submit`, for the one who finds out whether a version may answer."""
        events: Mailbox[GenerationEvent] = Mailbox()
        self._enter(self._admit(spec, events.put))
        return EventStream(spec.request_id, events, self.abort)

    def _admit(self, spec: GenerationSpec, deliver: Deliver) -> OpenRequest:
        self._check_open()
        if spec.request_id in self._open:
            raise InvalidRequest(f"request id {spec.request_id!r} is in use", param="request_id")
        text = self._view.text(spec.variant)
        self._admission.check(spec, text.vocab_size, self._open.queue(spec.tenant))
        opened = OpenRequest(spec, text, deliver)
        self._open.add(opened)
        return opened

    def _enter(self, opened: OpenRequest) -> None:
        request = opened.for_engine()
        self._thread.put(lambda core: core.add(request))

    async def _enter_proven(self, opened: OpenRequest) -> None:
        """The first request of a version that has a probe waits until that is answered."""
        try:
            await self._gate.prove(opened.spec.variant)
        except TsugikiError as error:
            if not opened.ended:
                self._end(opened, FinishReason.ERROR, str(error))
            return
        if not opened.ended:
            self._enter(opened)

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("the server is shutting down and takes no new requests")
        if not self.alive():
            raise Unavailable(self._death or "the engine is not running")

    def base(self) -> ModelInfo:
        """See EngineClient.base."""
        return self._view.base

    def machine(self) -> Machine:
        """See EngineClient.machine."""
        return self._machine

    def models(self) -> list[ModelInfo]:
        """See EngineClient.models."""
        return self._view.models()

    def resolve(self, model: str, user: str | None = None) -> VariantRef:
        """See EngineClient.resolve."""
        return self._service.resolve(model, user)

    def text(self, variant: VariantRef) -> TextSide:
        """See EngineClient.text."""
        return self._view.text(variant)

    def max_model_len(self) -> int:
        """See EngineClient.max_model_len."""
        return self._admission.max_model_len

    def variants(self) -> list[VariantInfo]:
        """See EngineClient.variants."""
        return self._view.variants()

    def upload_area(self) -> Path:
        """See EngineClient.upload_area."""
        return self._service.registry.uploads()

    async def put_variant(
        self, name: str, path: Path, *, pin: bool, activate: bool, signature: str | None = None
    ) -> tuple[VariantInfo, bool]:
        """See EngineClient.put_variant."""
        return await self._service.put(name, path, pin=pin, activate=activate, signature=signature)

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        """See EngineClient.load_adapter."""
        return await self._service.load_adapter(name, path)

    async def delete_variant(self, name: str) -> int:
        """See EngineClient.delete_variant."""
        return await self._service.delete(name)

    async def delete_version(self, name: str, digest: str) -> int:
        """See EngineClient.delete_version."""
        return await self._service.delete_version(name, digest)

    async def load_variant(self, name: str) -> VariantInfo:
        """See EngineClient.load_variant."""
        return await self._service.load(name)

    async def unload_variant(self, name: str) -> tuple[VariantInfo, int]:
        """See EngineClient.unload_variant."""
        return await self._service.unload(name)

    async def pin_variant(self, name: str, pinned: bool) -> VariantInfo:
        """See EngineClient.pin_variant."""
        return await self._service.pin(name, pinned)

    async def rollback_variant(self, name: str) -> VariantInfo:
        """See EngineClient.rollback_variant."""
        return await self._service.rollback(name)

    async def activate_variant(self, name: str, digest: str) -> VariantInfo:
        """See EngineClient.activate_variant."""
        return await self._service.activate(name, digest)

    async def canary_variant(self, name: str, digest: str, percent: float) -> VariantInfo:
        """See EngineClient.canary_variant."""
        return await self._service.canary(name, digest, percent)

    async def variant_history(self, name: str) -> tuple[HistoryEntry, ...]:
        """See EngineClient.variant_history."""
        return await self._service.history(name)

    def events(self, after: int | None = None) -> AsyncGenerator[VariantEvent, None]:
        """See EngineClient.events."""
        return self._service.events.after(after)

    def stats(self) -> EngineStats:
        """See EngineClient.stats."""
        return engine_stats(self._core, self._view, self._machine)

    def alive(self) -> bool:
        """See EngineClient.alive."""
        return self._death is None and self._thread.alive()

    def draining(self) -> bool:
        """See EngineClient.draining."""
        return self._draining

    async def start(self) -> None:
        """See EngineClient.start. One token is generated, so that a broken setup fails here.

        Raises:
            EngineFailure: the base cannot compute.
        """
        self._service.events.open()
        self._thread.start(self._deliver, self._on_end)
        params = SamplingParams(max_tokens=1, temperature=0.0)
        base = self.resolve(self._view.base.id)
        spec = GenerationSpec("warm-up", base, prompt_token_ids=(0,), params=params)
        async for event in self.submit(spec):
            if event.finish_reason is FinishReason.ERROR:
                raise EngineFailure(f"the base cannot compute: {event.error}")
        self._watch.start()

    async def stop(self, drain_seconds: float) -> None:
        """See EngineClient.stop. What still runs after the drain ends with FinishReason.ABORT."""
        self._draining = True
        self._service.events.close()
        await self._watch.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._open.none_left(), drain_seconds)
        unfinished = self._open.all()
        if unfinished:
            logger.warning("%d requests did not finish within the drain", len(unfinished))
        for request in unfinished:
            self._end(request, FinishReason.ABORT, "the server is shutting down")
        self._thread.put(None)
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        await asyncio.to_thread(self._loader.close)
        await asyncio.to_thread(self._service.close)

    def _deliver(self, events: list[StepEvent]) -> None:
        """All events of one step."""
        now = time.monotonic()
        for event in events:
            request = self._open.get(event.request_id)
            if request is None:
                continue  # it ended here first: a stop string, or its client left
            if request.feed(event, now):
                self._thread.put(partial(_abort, event.request_id))
            if request.ended:
                self._open.remove(request)
                self._admission.rate.finished()

    def abort(self, request_id: str) -> None:
        """See EngineClient.abort."""
        request = self._open.get(request_id)
        if request is not None:
            self._end(request, FinishReason.ABORT)

    def _take_out(self, digest: str, reason: str) -> None:
        """A version failed its probe."""
        self._thread.put(lambda core: core.take_out(digest, reason))

    def _on_end(self, reason: str) -> None:
        self._death = reason
        for request in self._open.all():
            self._end(request, FinishReason.ERROR, reason)

    def _end(self, request: OpenRequest, reason: FinishReason, error: str | None = None) -> None:
        request_id = request.spec.request_id
        request.feed(StepEvent(request_id, finish_reason=reason, error=error), time.monotonic())
        self._open.remove(request)
        self._thread.put(partial(_abort, request_id))


def _abort(request_id: str, core: EngineCore) -> None:
    core.abort(request_id)
