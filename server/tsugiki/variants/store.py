"""The directory of variants: plain files, every change one atomic, durable rename.

    ROOT/NAME.safetensors                    placed by the operator; never written, only deleted
    ROOT/NAME.sig                            its signature, by the operator
    ROOT/.tsugiki/blobs/<hex>.safetensors    every version that is served, by digest
    ROOT/.tsugiki/aliases/NAME.json          which versions NAME has, and which of them answers
    ROOT/.tsugiki/uploads/                   bodies still arriving; tidied at start
    ROOT/.tsugiki/lock                       held by the server that may write here

Owns these paths and the order file-sync, rename, directory-sync. A ROOT that cannot be written is
served too.
Does not know what a variant file contains, nor which version a name means (registry.py).
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tsugiki.errors import ConfigError, InvalidArtifact, StorageFull, Unsupported
from tsugiki.variants.alias import Alias
from tsugiki.variants.directory_lock import DirectoryLock
from tsugiki.variants.version import NAME
from tsugiki.variants.watch import SUFFIX

STATE = ".tsugiki"
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
PARTIAL = (".partial", ".partial.json")  # an upload that its client may resume, and its state
PARTIAL_SECONDS = 24 * 3600  # how long it may

CrashPoint = Callable[[str], None]  # a seam for tests: told the name of every step just done

logger = logging.getLogger(__name__)
_ALIAS = TypeAdapter(Alias)


def claim(root: Path) -> DirectoryLock | None:
    """Make ROOT, if need be, and take it for this process; None when it cannot be written anyway.

    Raises:
        ConfigError: it is no directory and cannot be made, or another server has it.
    """
    Store(root).open()
    state = root.resolve() / STATE
    try:
        with _disk_errors(root):
            _make_directory(state)
            return DirectoryLock(state / "lock", root.resolve())
    except Unsupported as error:
        logger.warning("serving without a lock: %s", error)
        return None


class Store:
    """Reads and changes the directory. Not thread-safe: the registry holds a lock."""

    def __init__(self, root: Path, crash_point: CrashPoint = lambda step: None) -> None:
        self.root = root.resolve()
        self._crash_point = crash_point
        self._state = self.root / STATE
        self._blobs = self._state / "blobs"
        self._aliases = self._state / "aliases"
        self.uploads_path = self._state / "uploads"

    def open(self) -> None:
        """Make ROOT, if need be.

        Raises:
            ConfigError: it is no directory, or it cannot be made.
        """
        try:
            _make_directory(self.root)
        except OSError as error:
            raise ConfigError(
                f"--variants {self.root} is no directory and cannot be made: {error.strerror}"
            ) from error

    def uploads(self) -> Path:
        """The directory for bodies that are still arriving."""
        with _disk_errors(self.root):
            _make_directory(self.uploads_path)
        return self.uploads_path

    def blob_path(self, digest: str) -> Path:
        """Where the file of this digest is, or would be."""
        return self._blobs / (digest.removeprefix("sha256:") + SUFFIX)

    def blobs(self) -> list[str]:
        """Digests of all files that are kept."""
        return ["sha256:" + path.stem for path in sorted(self._blobs.glob("*" + SUFFIX))]

    def placed_path(self, name: str) -> Path:
        """Where the operator's file of this name is, or would be."""
        return self.root / (name + SUFFIX)

    def inside(self, path: Path) -> bool:
        """Whether a file, links followed, is within ROOT."""
        return path.resolve().is_relative_to(self.root)

    def copy_in(self, placed: Path) -> Path:
        """A copy of an operator's file among the uploads; durable when this returns."""
        copy = self.uploads() / f"{uuid.uuid4().hex}.copy"
        try:
            with _disk_errors(self.root):
                shutil.copy(placed, copy)  # its mode too: what is private stays so
            self.sync(copy)
        except Exception:
            copy.unlink(missing_ok=True)
            raise
        return copy

    def sync(self, upload: Path) -> None:
        """Make the content of an upload durable."""
        with _disk_errors(self.root):
            _sync(upload)
            self._crash_point("upload synced")

    def add_blob(self, upload: Path, digest: str) -> Path:
        """Move a verified, synced upload to its place; durable when this returns."""
        target = self.blob_path(digest)
        with _disk_errors(self.root):
            self._move(upload, target)
            self._crash_point("blob in place")
        return target

    def remove(self, path: Path) -> None:
        """Unlink a file, durably."""
        with _disk_errors(self.root):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _sync(path.parent)

    def save_alias(self, alias: Alias) -> None:
        """Replace the record of one name: readers find the old one or the new one."""
        target = self._aliases / f"{alias.name}.json"
        temporary = target.with_suffix(".tmp")
        try:
            with _disk_errors(self.root):
                _make_directory(self._aliases)
                temporary.write_text(_to_json(alias))
                _sync(temporary)
                self._crash_point("alias written")
                os.replace(temporary, target)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise
        # A disk that fails here leaves the new record: whoever asked for it is not told that
        # nothing was kept.
        _sync(target.parent)
        self._crash_point("alias in place")

    def remove_alias(self, name: str) -> None:
        """Forget the record of a name."""
        self.remove(self._aliases / f"{name}.json")

    def aliases(self) -> Iterator[tuple[str, Alias | str]]:
        """Every name with its record, or with what is wrong with the record."""
        for path in sorted(self._aliases.glob("*.json")):
            try:
                yield path.stem, _from_json(path.stem, path.read_text())
            except (OSError, ValueError, InvalidArtifact) as error:
                yield path.stem, f"the record {path.name} is damaged: {error}; upload again"

    def clean(self, now: float) -> None:
        """Remove what a crash left half-written: unfinished records, and uploads that nobody can
        resume. `now` is in unix seconds."""
        uploads = [path for path in self.uploads_path.glob("*") if not _resumable(path, now)]
        for path in [*uploads, *self._aliases.glob("*.tmp")]:
            if path.is_symlink() or not path.is_dir():
                self.remove(path)

    def _move(self, source: Path, target: Path) -> None:
        _make_directory(target.parent)
        os.replace(source, target)
        _sync(target.parent)


def _resumable(path: Path, now: float) -> bool:
    if path.is_symlink() or not path.name.endswith(PARTIAL):
        return False
    return now - path.stat().st_mtime < PARTIAL_SECONDS


def _make_directory(path: Path) -> None:
    """Like mkdir -p, durably."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _to_json(alias: Alias) -> str:
    fields = asdict(alias)
    return json.dumps({**fields, "sha256": _checksum(fields)}, indent=1)


def _from_json(name: str, text: str) -> Alias:
    """A record, complete and as it was written. Records of 0.1.0 have no checksum.

    Raises:
        InvalidArtifact, ValueError: otherwise.
    """
    fields: Any = json.loads(text)
    if not isinstance(fields, dict):
        raise InvalidArtifact("it is no record")
    checksum = fields.pop("sha256", None)
    if checksum not in (None, _checksum(fields)):
        raise InvalidArtifact("its checksum does not fit its content")
    try:
        alias = _ALIAS.validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidArtifact(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if alias.name != name or not NAME.fullmatch(name):
        raise InvalidArtifact(f"it speaks of {alias.name!r}")
    return alias


def _checksum(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(f"the disk of {root} is full; nothing was kept") from error
        if error.errno in REFUSED:
            raise Unsupported(f"{root} cannot be written ({error.strerror})") from error
        raise
