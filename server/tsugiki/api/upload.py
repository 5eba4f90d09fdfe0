"""A variant file in one request: from the socket to a temporary file.

Owns: the temporary file; nothing of a failed upload stays. Does not know what is in the file.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from tsugiki.api.body_writer import full_disk_refused, opened, write_body
from tsugiki.api.services import OpenUpload


def open_exclusively(path: Path) -> BinaryIO:
    """A new file for writing, unbuffered."""
    return path.open("xb", buffering=0)


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
        with full_disk_refused(area):
            async with opened(partial(open_upload, path)) as file:
                await write_body(request.stream(), file)
        yield path
    finally:
        await asyncio.to_thread(partial(path.unlink, missing_ok=True))
