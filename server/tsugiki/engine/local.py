"""LocalEngine: the EngineClient of this process, over one engine thread.

Owns: taking requests in, giving their events out, and the life of the engine. Lives on the event
loop. Does not know batches (core.py), tensors (model_runner.py) or HTTP.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tsugiki.engine.admission import Admission
from tsugiki.engine.client import (
    EngineStats,
    GenerationEvent,
    GenerationSpec,
    ModelInfo,
    VariantInfo,
)
from tsugiki.engine.core import EngineCore, StepEvent
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.request import FinishReason, Request, SamplingParams, VariantRef
from tsugiki.engine.stream import EventStream, OpenRequest
from tsugiki.engine.thread import EngineThread
from tsugiki.engine.variant_service import VariantService
from tsugiki.errors import EngineFailure, InvalidRequest, Unavailable
from tsugiki.text.tokenizer import TextSide
from tsugiki.variants.loader import BackgroundLoader

logger = logging.getLogger(__name__)

JOIN_SECONDS = 10.0  # a step that takes longer than this is left to die with the process


@dataclass(frozen=True, slots=True)
class Machine:
    """How the model is computed; for /health and system_fingerprint."""

    kernels: str
    device: str
    dtype: str
    threads: int


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
    ) -> None:
        self._core = core  # read only here: its state belongs to the thread
        self._thread = thread
        self._service = service
        self._admission = admission
        self._loader = loader
        self._machine = machine
        self._open: OpenRequests = service.open_requests
        self._draining = False
        self._death: str | None = None

    def submit(self, spec: GenerationSpec) -> AsyncGenerator[GenerationEvent, None]:
        """See EngineClient.submit. Raises at once, not at the first event."""
        if self._draining:
            raise Unavailable("the server is shutting down and takes no new requests")
        if not self.alive():
            raise Unavailable(self._death or "the engine is not running")
        if spec.request_id in self._open:
            raise InvalidRequest(f"request id {spec.request_id!r} is in use", param="request_id")
        text = self._service.text(spec.variant)
        self._service.check_known(spec.variant)
        self._admission.check(spec, text.vocab_size, len(self._open))
        opened = OpenRequest(spec, text)
        self._open.add(opened)
        request = _request(spec, text)
        self._thread.put(lambda core: core.add(request))
        return EventStream(opened, self._abort)

    def models(self) -> list[ModelInfo]:
        """See EngineClient.models."""
        return self._service.models()

    def resolve(self, model: str) -> VariantRef:
        """See EngineClient.resolve."""
        return self._service.resolve(model)

    def text(self, variant: VariantRef) -> TextSide:
        """See EngineClient.text."""
        return self._service.text(variant)

    def max_model_len(self) -> int:
        """See EngineClient.max_model_len."""
        return self._admission.max_model_len

    def variants(self) -> list[VariantInfo]:
        """See EngineClient.variants."""
        return self._service.variants()

    def upload_area(self) -> Path:
        """See EngineClient.upload_area."""
        return self._service.registry.uploads()

    async def put_variant(
        self, name: str, path: Path, *, pin: bool, activate: bool
    ) -> tuple[VariantInfo, bool]:
        """See EngineClient.put_variant."""
        return await self._service.put(name, path, pin=pin, activate=activate)

    async def load_adapter(self, name: str, path: Path) -> VariantInfo:
        """See EngineClient.load_adapter."""
        return await self._service.load_adapter(name, path)

    async def delete_variant(self, name: str) -> int:
        """See EngineClient.delete_variant."""
        return await self._service.delete(name)

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

    def stats(self) -> EngineStats:
        """See EngineClient.stats. Single integers are read while the engine thread runs."""
        scheduler, counters = self._core.scheduler, self._core.counters
        resident = [i for i in self._service.residency.snapshot().values() if i.resident_bytes]
        running, loading = len(scheduler.running), self._core.num_loading
        return EngineStats(
            waiting=max(0, len(scheduler) - running - loading),
            running=running,
            loading=loading,
            kv_blocks_total=scheduler.blocks.num_blocks,
            kv_blocks_free=scheduler.blocks.num_free,
            steps=counters.steps,
            preemptions=scheduler.num_preemptions,
            last_batch_rows=counters.last_batch_rows,
            resident_variants=len(resident),
            resident_variant_bytes=sum(info.resident_bytes for info in resident),
            kernels=self._machine.kernels,
            device=self._machine.device,
            dtype=self._machine.dtype,
            threads=self._machine.threads,
        )

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
        self._thread.start(self._deliver, self._on_end)
        params = SamplingParams(max_tokens=1, temperature=0.0)
        base = self.resolve(self._service.base.id)
        spec = GenerationSpec("warm-up", base, prompt_token_ids=(0,), params=params)
        async for event in self.submit(spec):
            if event.finish_reason is FinishReason.ERROR:
                raise EngineFailure(f"the base cannot compute: {event.error}")

    async def stop(self, drain_seconds: float) -> None:
        """See EngineClient.stop. What still runs after the drain ends with FinishReason.ABORT."""
        self._draining = True
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

    def _deliver(self, events: list[StepEvent]) -> None:
        """All events of one step."""
        for event in events:
            request = self._open.get(event.request_id)
            if request is None:
                continue  # it ended here first: a stop string, or its client left
            if request.feed(event):
                self._thread.put(partial(_abort, event.request_id))
            if request.ended:
                self._open.remove(request)
                self._admission.rate.finished()

    def _abort(self, request_id: str) -> None:
        """The client is gone."""
        request = self._open.get(request_id)
        if request is not None:
            self._end(request, FinishReason.ABORT)

    def _on_end(self, reason: str) -> None:
        self._death = reason
        for request in self._open.all():
            self._end(request, FinishReason.ERROR, reason)

    def _end(self, request: OpenRequest, reason: FinishReason, error: str | None = None) -> None:
        request_id = request.spec.request_id
        request.feed(StepEvent(request_id, finish_reason=reason, error=error))
        self._open.remove(request)
        self._thread.put(partial(_abort, request_id))


def _abort(request_id: str, core: EngineCore) -> None:
    core.abort(request_id)


def _request(spec: GenerationSpec, text: TextSide) -> Request:
    """The engine's side of a request: no text, a seed in any case."""
    params = spec.params
    if params.ignore_eos:
        params = replace(params, stop_token_ids=params.stop_token_ids - text.eos_token_ids)
    return Request(
        request_id=spec.request_id,
        variant=spec.variant,
        prompt_token_ids=spec.prompt_token_ids,
        params=params,
        tenant=spec.tenant,
        arrival=time.monotonic(),
        seed=random.getrandbits(64) if params.seed is None else params.seed,
    )
