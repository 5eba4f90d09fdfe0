"""Uploads that have not arrived whole, as files.

    AREA/<upload id>.partial         what has arrived so far, in order
    AREA/<upload id>.partial.json    of what: {"name", "total"}

Owns: these files, how many there may be, and how long they live. They survive a restart; what is
in a file was received, whatever ended the connection. Called on worker threads, one call per upload
id at a time. Does not know requests.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tsugiki.errors import Conflict, StorageFull

logger = logging.getLogger(__name__)

LIFE_SECONDS = 24 * 3600.0  # since the last byte arrived
IDLE_SECONDS = 300.0  # after which one makes room for a new one, when there are too many
_RECORD = ".partial.json"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an upload id was chosen for."""

    name: str  # of the variant
    total: int  # bytes of the whole file


class PartialFiles:
    """All partial uploads of one area. Every one has its total reserved from its first byte on, so
    that what was begun can be finished."""

    def __init__(
        self,
        area: Callable[[], Path],
        *,
        most: int,
        most_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`area` makes and names the directory; `most` uploads of `most_bytes` together."""
        self._area = area
        self._most = most
        self._most_bytes = most_bytes
        self._clock = clock
        self._creating = threading.Lock()

    def size(self, upload_id: str, claim: Claim) -> int:
        """Bytes that have arrived; 0 for an upload that has not begun.

        Raises:
            Conflict: this id was chosen for something else.
        """
        known = self._claim(self._record(upload_id))
        if known is None:
            return 0
        if known != claim:
            raise Conflict(f"upload {upload_id!r} is of something else; choose another X-Upload-Id")
        return _size(self._content(upload_id))

    def open(self, upload_id: str, claim: Claim) -> BinaryIO:
        """The file to append to, made when there is none.

        Raises:
            StorageFull: too many partial uploads, or too large together.
        """
        if self._claim(self._record(upload_id)) is None:
            with self._creating:
                self._create(upload_id, claim)
        return self._content(upload_id).open("ab", buffering=0)

    def take(self, upload_id: str, target: Path) -> None:
        """Move a whole upload to `target`, where it is partial no more."""
        os.replace(self._content(upload_id), target)
        self._record(upload_id).unlink()

    def sweep(self) -> None:
        """Remove what is too old, and what no record belongs to."""
        with self._creating:
            self._sweep()

    def _sweep(self) -> None:
        records = self._records()
        for path in self._area().glob("*.partial"):
            if path.stem not in records:
                path.unlink(missing_ok=True)
        for upload_id, record in records.items():
            if self._age(upload_id) > LIFE_SECONDS or self._claim(record) is None:
                self._drop(upload_id)

    def _create(self, upload_id: str, claim: Claim) -> None:
        self._sweep()
        self._make_room(claim.total)
        temporary = self._area() / f"{upload_id}.tmp"
        temporary.write_text(json.dumps(asdict(claim)))
        _sync(temporary)
        os.replace(temporary, self._record(upload_id))
        self._content(upload_id).touch()
        _sync(self._area())

    def _make_room(self, total: int) -> None:
        """Drop those that rest the longest, as long as there are too many beside a new one."""
        oldest_first = sorted(self._records(), key=self._age, reverse=True)
        while (refusal := self._refusal(total)) is not None:
            if not oldest_first or self._age(oldest_first[0]) < IDLE_SECONDS:
                raise StorageFull(refusal)
            self._drop(oldest_first.pop(0))

    def _refusal(self, total: int) -> str | None:
        """Why an upload of so many bytes cannot begin now."""
        claims = [self._claim(record) for record in self._records().values()]
        if len(claims) >= self._most:
            return f"{len(claims)} uploads are in progress, the most this server takes; come later"
        reserved = sum(known.total for known in claims if known is not None)
        if reserved + total > self._most_bytes:
            return (
                f"uploads in progress have {reserved} of {self._most_bytes} bytes, too many for "
                f"{total} more; come later, or raise --max-partial-bytes"
            )
        return None

    def _drop(self, upload_id: str) -> None:
        logger.info("partial upload %s is dropped after %.0f s", upload_id, self._age(upload_id))
        self._content(upload_id).unlink(missing_ok=True)
        self._record(upload_id).unlink(missing_ok=True)

    def _age(self, upload_id: str) -> float:
        """Seconds since anything of it arrived."""
        newest = max(_modified(self._record(upload_id)), _modified(self._content(upload_id)))
        return self._clock() - newest

    def _records(self) -> dict[str, Path]:
        return {p.name.removesuffix(_RECORD): p for p in self._area().glob(f"*{_RECORD}")}

    def _content(self, upload_id: str) -> Path:
        return self._area() / f"{upload_id}.partial"

    def _record(self, upload_id: str) -> Path:
        return self._area() / f"{upload_id}{_RECORD}"

    def _claim(self, record: Path) -> Claim | None:
        """What a record says; None when there is none, or none that can be read."""
        try:
            value = json.loads(record.read_text())
            return Claim(str(value["name"]), int(value["total"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("the record %s of a partial upload is damaged", record.name)
            return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
