"""The directory of variants: plain files, every change one atomic, durable rename.

    ROOT/NAME.safetensors                    placed by the operator; served in place, never written
    ROOT/.tsugiki/blobs/<hex>.safetensors    uploaded, by digest
    ROOT/.tsugiki/aliases/NAME.json          which digests NAME has, and which were active, in order
    ROOT/.tsugiki/uploads/                   bodies still arriving; emptied at start

Owns these paths and the order file-sync, rename, directory-sync. Nothing below `.tsugiki` is made
before the first write, so that a read-only ROOT can be served.
Does not know what a variant file contains, nor which version a name means (registry.py).
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsugiki.errors import InvalidArtifact, StorageFull, Unsupported
from tsugiki.variants.version import NAME

SUFFIX = ".safetensors"
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)

CrashPoint = Callable[[str], None]  # a seam for tests: told the name of every step just done


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One uploaded version in an alias record."""

    digest: str
    created: int  # unix seconds


@dataclass(frozen=True, slots=True)
class Alias:
    """What a name means. `activations` is a stack of digests, and of "file" for ROOT/NAME."""

    name: str
    versions: tuple[StoredVersion, ...] = ()
    activations: tuple[str, ...] = ()
    deleted: bool = False  # the deletion is decided but not all of it was done


class Store:
    """Reads and changes the directory. Not thread-safe: the registry holds a lock."""

    def __init__(self, root: Path, crash_point: CrashPoint = lambda step: None) -> None:
        self.root = root.resolve()
        self._crash_point = crash_point
        self._state = self.root / ".tsugiki"
        self._blobs = self._state / "blobs"
        self._aliases = self._state / "aliases"
        self._uploads = self._state / "uploads"

    def uploads(self) -> Path:
        """The directory for bodies that are still arriving."""
        with _disk_errors(self.root):
            _make_directory(self._uploads)
        return self._uploads

    def blob_path(self, digest: str) -> Path:
        """Where an uploaded version of this digest is, or would be."""
        return self._blobs / (digest.removeprefix("sha256:") + SUFFIX)

    def blobs(self) -> list[str]:
        """Digests of all uploaded files."""
        return ["sha256:" + path.stem for path in sorted(self._blobs.glob("*" + SUFFIX))]

    def placed_files(self) -> list[Path]:
        """The operator's files, by name."""
        return sorted(self.root.glob("[!.]*" + SUFFIX))

    def inside(self, path: Path) -> bool:
        """Whether a file, links followed, is within ROOT."""
        return path.resolve().is_relative_to(self.root)

    def add_blob(self, upload: Path, digest: str) -> Path:
        """Move a verified upload to its place; durable when this returns."""
        target = self.blob_path(digest)
        with _disk_errors(self.root):
            _sync(upload)
            self._crash_point("upload synced")
            self._move(upload, target)
        self._crash_point("blob in place")
        return target

    def keep_as_blob(self, path: Path, digest: str) -> Path:
        """Move an operator's file among the blobs, where it lives until nobody needs it."""
        target = self.blob_path(digest)
        with _disk_errors(self.root):
            self._move(path, target)
            _sync(path.parent)
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
        with _disk_errors(self.root):
            _make_directory(self._aliases)
            temporary.write_text(json.dumps(asdict(alias), indent=1))
            _sync(temporary)
            self._crash_point("alias written")
            self._move(temporary, target)
        self._crash_point("alias in place")

    def remove_alias(self, name: str) -> None:
        """Forget the record of a name."""
        self.remove(self._aliases / f"{name}.json")

    def aliases(self) -> Iterator[tuple[str, Alias | str]]:
        """Every name with its record, or with what is wrong with the record."""
        for path in sorted(self._aliases.glob("*.json")):
            try:
                yield path.stem, _parse_alias(path.stem, json.loads(path.read_text()))
            except (OSError, ValueError, InvalidArtifact) as error:
                yield path.stem, f"the record {path.name} is damaged: {error}; upload again"

    def clean(self) -> None:
        """Remove what a crash left half-written: unfinished uploads and unfinished records."""
        leftovers = [*self._uploads.glob("*"), *self._aliases.glob("*.tmp")]
        for path in leftovers:
            if path.is_symlink() or not path.is_dir():
                self.remove(path)

    def _move(self, source: Path, target: Path) -> None:
        _make_directory(target.parent)
        os.replace(source, target)
        _sync(target.parent)


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


def _parse_alias(name: str, value: Any) -> Alias:
    try:
        alias = Alias(
            name=value["name"],
            versions=tuple(StoredVersion(v["digest"], v["created"]) for v in value["versions"]),
            activations=tuple(value["activations"]),
            deleted=value["deleted"],
        )
    except (KeyError, TypeError) as error:
        raise InvalidArtifact(f"{type(error).__name__}: {error}") from error
    if alias.name != name or not NAME.fullmatch(name):
        raise InvalidArtifact(f"it speaks of {alias.name!r}")
    return alias


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
