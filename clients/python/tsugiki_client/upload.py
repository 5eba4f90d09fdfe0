"""An upload that survives broken connections: what to send next, and when to give up.

Owns: the state of one upload. Pure but for reading the file; does not know sockets, sync or async.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tsugiki_client import protocol
from tsugiki_client.errors import (
    ConnectionFailed,
    InvalidVariant,
    Overloaded,
    TsugikiClientError,
    Unavailable,
)
from tsugiki_client.protocol import Call
from tsugiki_client.results import Pushed, PushOptions

ATTEMPTS = 6  # failures in a row without a byte more on the server
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds


@dataclass(slots=True)
class Upload:
    """One file on its way. `call`, then `took` what came of it or `failed`; again until done."""

    name: str
    file: Path
    options: PushOptions
    upload_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _size: int = 0
    _offset: int | None = 0  # None: the server must be asked
    _furthest: int = 0
    _failures: int = 0

    def __post_init__(self) -> None:
        self._size = self.file.stat().st_size
        if not self._size:
            raise InvalidVariant(f"{self.file} is empty")

    def call(self) -> Call[Pushed | int]:
        """The next request; its body is `content`."""
        return protocol.push_part(
            self.name, self._size, self._offset, upload_id=self.upload_id, options=self.options
        )

    def content(self) -> Iterator[bytes] | None:
        """The rest of the file in pieces; None when the server is only asked."""
        return None if self._offset is None else _chunks(self.file, self._offset, self._size)

    def took(self, step: Pushed | int) -> Pushed | None:
        """The result, or None: the server has so many bytes and wants more."""
        if not isinstance(step, int):
            return step
        self._offset = step
        if step > self._furthest:
            self._furthest, self._failures = step, 0
        return None

    def failed(self, error: TsugikiClientError) -> float:
        """Seconds to wait before the next call; raises what no repetition can mend."""
        self._failures += 1
        if self._failures >= ATTEMPTS or not _passing(error):
            raise error
        self._offset = None
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures - 1))
        return error.retry_after or pause


def _passing(error: TsugikiClientError) -> bool:
    passing = isinstance(error, ConnectionFailed | Unavailable | Overloaded)
    return passing or error.code == "wrong_offset"


def _chunks(file: Path, start: int, stop: int) -> Iterator[bytes]:
    """Bytes start to stop; a file that grew meanwhile is sent as it was."""
    with file.open("rb") as source:
        source.seek(start)
        while chunk := source.read(min(protocol.CHUNK_BYTES, stop - start)):
            start += len(chunk)
            yield chunk
