"""Uploads in several requests: a client whose connection broke goes on where the bytes end.

Owns: who may append to an upload now (the newest request: the one before it belongs to a connection
that may be dead without anybody knowing), and the end of each upload, which goes on when the client
that sent the last byte has left. Does not know files (partial_files.py) or HTTP headers.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from tsugiki.api.body_writer import full_disk_refused, opened, write_body
from tsugiki.api.content_range import ContentRange
from tsugiki.api.partial_files import Claim, PartialFiles
from tsugiki.errors import Conflict, InvalidRequest, UserError, WrongOffset

T = TypeVar("T")
REMEMBERED = 64  # uploads whose end is told again to a client that missed it


@dataclass(frozen=True, slots=True)
class Chunk:
    """One request of an upload."""

    upload_id: str
    name: str
    range: ContentRange
    body: AsyncIterator[bytes]

    @property
    def claim(self) -> Claim:
        """What the upload is of."""
        return Claim(self.name, self.range.total)


@dataclass(frozen=True, slots=True)
class Progress:
    """Not all bytes are here."""

    received: int
    total: int


@dataclass(frozen=True, slots=True)
class _Ending(Generic[T]):
    claim: Claim
    result: "asyncio.Task[T]"


class ResumableUploads(Generic[T]):
    """Chunks in, one file out, which `finish` (of the last chunk's request) turns into a result."""

    def __init__(self, files: PartialFiles, area: Callable[[], Path]) -> None:
        self._files = files
        self._area = area
        self._writing: dict[str, asyncio.Task[int]] = {}
        self._endings: OrderedDict[str, _Ending[T]] = OrderedDict()

    async def take(self, chunk: Chunk, finish: Callable[[Path], Awaitable[T]]) -> T | Progress:
        """Append a chunk; the progress, or when the file is whole what `finish` made of it.

        Raises:
            WrongOffset: the chunk does not begin where the bytes end.
            Conflict: the id is used for something else, or a newer request took over.
            StorageFull: no room; what has arrived stays. Whatever `finish` raises.
        """
        if (ending := self._ending(chunk)) is not None:
            return await asyncio.shield(ending.result)
        received = await self._alone(chunk)
        if (ending := self._endings.get(chunk.upload_id)) is not None:
            return await asyncio.shield(ending.result)  # another request was quicker
        if received < chunk.range.total:
            return Progress(received, chunk.range.total)
        return await asyncio.shield(self._end(chunk, finish).result)

    def _ending(self, chunk: Chunk) -> _Ending[T] | None:
        """The end of an upload that is whole already, for those who only ask."""
        ending = self._endings.get(chunk.upload_id)
        if ending is None or (ending.result.done() and chunk.range.start is not None):
            self._endings.pop(chunk.upload_id, None)  # the id begins anew
            return None
        if ending.claim != chunk.claim:
            raise Conflict(f"upload {chunk.upload_id!r} is of something else; choose another id")
        if chunk.range.start is not None:
            total = chunk.range.total
            raise WrongOffset(f"all {total} bytes are here and being verified", received=total)
        return ending

    def _end(self, chunk: Chunk, finish: Callable[[Path], Awaitable[T]]) -> _Ending[T]:
        task = asyncio.create_task(self._finish(chunk.upload_id, finish))
        task.add_done_callback(partial(self._ended, chunk.upload_id))
        ending = self._endings[chunk.upload_id] = _Ending(chunk.claim, task)
        done = [key for key, known in self._endings.items() if known.result.done()]
        for upload_id in done[: max(0, len(self._endings) - REMEMBERED)]:
            del self._endings[upload_id]
        return ending

    async def _finish(self, upload_id: str, finish: Callable[[Path], Awaitable[T]]) -> T:
        area = await asyncio.to_thread(self._area)
        whole = area / f"{uuid.uuid4().hex}.part"
        try:
            await asyncio.to_thread(self._files.take, upload_id, whole)
            return await finish(whole)
        finally:
            await asyncio.to_thread(partial(whole.unlink, missing_ok=True))

    def _ended(self, upload_id: str, task: "asyncio.Task[T]") -> None:
        """Remember what is final. The file is gone in any case: after a failure of the moment its
        client begins anew. A failure that nobody waited for has been logged by `finish`."""
        if task.cancelled() or (task.exception() and not isinstance(task.exception(), UserError)):
            self._endings.pop(upload_id, None)

    async def _alone(self, chunk: Chunk) -> int:
        """Append after the request before has stopped; bytes that are here then."""
        while (before := self._writing.get(chunk.upload_id)) is not None:
            before.cancel()
            await asyncio.wait({before})
        task = asyncio.create_task(self._append(chunk))
        self._writing[chunk.upload_id] = task
        task.add_done_callback(lambda _: self._writing.pop(chunk.upload_id))
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            if chunk.range.start is None:  # it changes nothing: what is here answers it
                return await asyncio.to_thread(self._files.size, chunk.upload_id, chunk.claim)
            raise Conflict(f"a newer request goes on with upload {chunk.upload_id!r}") from None

    async def _append(self, chunk: Chunk) -> int:
        received = await asyncio.to_thread(self._files.size, chunk.upload_id, chunk.claim)
        if chunk.range.start is None:
            await _refuse_any(chunk.body)
            return received
        if chunk.range.start != received:
            raise WrongOffset(
                f"{received} bytes of upload {chunk.upload_id!r} are here; go on at {received}",
                received=received,
            )
        with full_disk_refused(await asyncio.to_thread(self._area)):
            async with opened(partial(self._files.open, chunk.upload_id, chunk.claim)) as file:
                await write_body(chunk.body, file, chunk.range.length)
        return await asyncio.to_thread(self._files.size, chunk.upload_id, chunk.claim)


async def _refuse_any(body: AsyncIterator[bytes]) -> None:
    async for content in body:
        if content:
            raise InvalidRequest("Content-Range: bytes */TOTAL asks, and has no body")
