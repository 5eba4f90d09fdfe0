"""A request's body on its way into a file, never whole in memory.

Owns: buffering, syncing, and what a full disk means. Does not know what the file is for. The disk
is touched on worker threads only.
"""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tsugiki.errors import InvalidRequest, StorageFull

_BUFFER_BYTES = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


async def write_body(chunks: AsyncIterator[bytes], file: BinaryIO, most: int | None = None) -> None:
    """Move a body into an unbuffered file, synced when this returns or raises.

    What arrived before an error is in the file: when the client left, or this was cancelled.

    Raises:
        InvalidRequest: more than `most` bytes came; that many are in the file.
        OSError: the disk; up to where it failed the file is written.
    """
    buffer = bytearray()
    room = most
    try:
        async for chunk in chunks:
            buffer += chunk if room is None else chunk[:room]
            if room is not None and len(chunk) > room:
                raise InvalidRequest(
                    f"the body is longer than the {most} bytes of its Content-Range",
                    param="Content-Range",
                )
            room = None if room is None else room - len(chunk)
            if len(buffer) >= _BUFFER_BYTES:
                full, buffer = buffer, bytearray()
                await _in_thread(partial(_write, file, full))
    finally:
        await _in_thread(partial(_finish, file, buffer))


@asynccontextmanager
async def opened(open_file: Callable[[], BinaryIO]) -> AsyncGenerator[BinaryIO, None]:
    """A file that is opened, and closed whatever happens, on worker threads."""
    task = asyncio.create_task(asyncio.to_thread(open_file))
    try:
        file = await asyncio.shield(task)
    except asyncio.CancelledError:
        (await task).close()
        raise
    try:
        yield file
    finally:
        await asyncio.to_thread(file.close)


@contextmanager
def full_disk_refused(area: Path) -> Iterator[None]:
    """A disk without room becomes StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"no room for this upload in {area}; delete variants or add space"
            ) from error
        raise


async def _in_thread(work: Callable[[], None]) -> None:
    """On a worker thread. It cannot be interrupted, so that a cancelled caller waits for it: two
    writes at a time would mix."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _finish(file: BinaryIO, rest: bytearray) -> None:
    _write(file, rest)
    os.fsync(file.fileno())


def _write(file: BinaryIO, content: bytearray) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
