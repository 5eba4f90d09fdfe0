"""The self-test of a variant: the probe in its file, replayed here before it answers anybody.

Owns: the replay, and which versions have passed theirs since this server started. A version passes
once: file, base and kernels do not change while it runs, so that a rollback need not wait. Lives on
the event loop. Does not know how probes are made (compress/probe.py), what a failure does to a
version (variant_service.py) or files.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.request import FinishReason, SamplingParams, VariantRef
from tsugiki.errors import InvalidRequest, ProbeFailed, Unavailable

logger = logging.getLogger(__name__)

TENANT = "tsugiki-probe"  # its own: between tenants the scheduler is fair, so it is soon served
PATIENCE_SECONDS = 120.0

Submit = Callable[[GenerationSpec], AsyncGenerator[GenerationEvent, None]]
TakeOut = Callable[[str, str], None]  # digest, reason
Probe = Mapping[str, Any]  # {"prompt_ids": [...], "greedy_ids": [...]}, docs/format.md section 9


async def replay(
    submit: Submit, ref: VariantRef, probe: Probe, patience: float = PATIENCE_SECONDS
) -> str | None:
    """Ask a version its probe; None when it answers as expected, else how it differs.

    Raises:
        Overloaded, Unavailable: the queue is full, the server drains, or `patience` seconds went
            by: nothing is known then, and asking again later may help.
    """
    expected = tuple(probe["greedy_ids"])
    params = SamplingParams(max_tokens=len(expected), temperature=0.0, ignore_eos=True)
    prompt = tuple(probe["prompt_ids"])
    spec = GenerationSpec(f"probe-{uuid.uuid4().hex}", ref, prompt, params, tenant=TENANT)
    try:
        stream = submit(spec)
    except InvalidRequest as error:  # longer than this server's context, say
        return f"it cannot be asked here: {error}"
    try:
        async with asyncio.timeout(patience):
            return await _compare(stream, expected)
    except TimeoutError:
        raise Unavailable(
            f"the engine did not answer the probe of variant {ref.name!r} within {patience:g} "
            "seconds; nothing was changed, try again when it is less busy"
        ) from None
    finally:
        await stream.aclose()


async def _compare(
    stream: AsyncGenerator[GenerationEvent, None], expected: Sequence[int]
) -> str | None:
    found: list[int] = []
    async for event in stream:
        found += event.token_ids
        if event.finish_reason is FinishReason.ABORT:
            raise Unavailable(f"the probe was interrupted: {event.error or 'try again'}")
        if event.finish_reason is FinishReason.ERROR:
            return f"it raised an error: {event.error}"
    return difference(expected, found)


def difference(expected: Sequence[int], found: Sequence[int]) -> str | None:
    """The first place where two answers differ, in words; None when they are equal."""
    for place, (wanted, token) in enumerate(zip(expected, found, strict=False)):
        if wanted != token:
            return f"token {place} of {len(expected)} is {token}, expected {wanted}"
    if len(found) != len(expected):
        return f"it gave {len(found)} tokens, expected {len(expected)}"
    return None


class Probes:
    """Which versions need not be asked, have failed, or are being asked now."""

    def __init__(self) -> None:
        self._submit: Submit
        self._take_out: TakeOut
        self._passed: set[str] = set()  # or have no probe
        self._failed: dict[str, str] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def connect(self, submit: Submit, take_out: TakeOut) -> None:
        """Ask through `submit`, which must not come back to `prove`; a version that fails is given
        to `take_out` with the reason."""
        self._submit, self._take_out = submit, take_out

    def passed(self, digest: str) -> bool:
        """Whether this version may answer: it did, or has no probe. False: `prove` finds out."""
        return digest in self._passed

    def settled(self, digest: str, probe: Probe | None) -> bool:
        """The same, for a version with this probe.

        Raises:
            ProbeFailed: it was asked before, and nothing has changed since.
        """
        if digest in self._failed:
            raise ProbeFailed(self._failed[digest])
        if probe is None:
            self._passed.add(digest)
        return digest in self._passed

    def failed(self, digest: str) -> bool:
        """Whether it gave a wrong answer the last time."""
        return digest in self._failed

    def forget(self, digest: str) -> None:
        """The version was deleted."""
        self._passed.discard(digest)
        self._failed.pop(digest, None)

    async def prove(
        self, ref: VariantRef, probe: Probe | None, *, again: bool = False, log: bool = True
    ) -> None:
        """Return once this version has answered its probe: at once when it has none, or did before.

        Whoever asks while it is being asked gets the same answer. A failure is repeated without
        asking, unless `again`; one line of the log tells of it, or, without `log`, the caller.

        Raises:
            ProbeFailed: naming the first position that differs, the token found and expected.
            Overloaded, Unavailable: see `replay`.
        """
        digest = ref.digest
        if digest is None or digest in self._passed:
            return
        if again:
            self._failed.pop(digest, None)
        if self.settled(digest, probe) or probe is None:
            return
        if digest not in self._running:
            task = asyncio.create_task(self._ask(ref, digest, probe, log))
            self._running[digest] = task
            task.add_done_callback(_retrieve)
        await asyncio.shield(self._running[digest])

    async def _ask(self, ref: VariantRef, digest: str, probe: Probe, log: bool) -> None:
        try:
            reason = await replay(self._submit, ref, probe)
        finally:
            del self._running[digest]
        if reason is None:
            self._passed.add(digest)
            return
        told = f"variant {ref.name!r} ({digest}) fails its own probe: {reason}"
        self._failed[digest] = told
        self._take_out(digest, told)
        if log:
            logger.error("%s", told)
        raise ProbeFailed(told)


def _retrieve(task: "asyncio.Task[None]") -> None:
    """All who waited may have left: the outcome is remembered, the exception needs no reader."""
    if not task.cancelled():
        task.exception()
