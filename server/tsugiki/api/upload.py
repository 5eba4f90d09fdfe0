"""A variant file on its way in: from the socket to a temporary file, never whole in memory.

Owns: the temporary file; nothing of a failed upload stays. Does not know what is in the file.
"""

import asyncio
import errno
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from tsugiki.api.services import OpenUpload
from tsugiki.errors import StorageFull

_BUFFER_BYTES = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_exclusively(path: Path) -> BinaryIO:
    """A new file for writing."""
    return path.open("xb")


@asynccontextmanager
async def received(
    request: Request, area: Path, open_upload: OpenUpload
) -> AsyncGenerator[Path, None]:
    """The request's body as a file in `area`, which is gone afterwards unless it was moved away.

    Raises:
        StorageFull: no room on disk.
        ClientDisconnect: the body ended early.
    """
    path = area / f"{uuid.uuid4().hex}.part"
    try:
        try:
            await _write(request, path, open_upload)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull(
                    f"no room for this upload in {area}; delete variants or add space"
                ) from error
            raise
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _write(request: Request, path: Path, open_upload: OpenUpload) -> None:
    file = await asyncio.to_thread(open_upload, path)
    try:
        buffer = bytearray()
        async for chunk in request.stream():
            buffer += chunk
            if len(buffer) >= _BUFFER_BYTES:
                await asyncio.to_thread(file.write, bytes(buffer))
                buffer.clear()
        await asyncio.to_thread(_finish, file, bytes(buffer))
    finally:
        file.close()


def _finish(file: BinaryIO, rest: bytes) -> None:
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())
