"""Which variants there are, and every change of them: upload, activation, rollback, deletion.

Owns the records and the checked files of one directory, and the order of changes: on disk first,
then visible. Changes happen under one lock (worker threads call in); reads take an immutable
catalog and never wait.
Does not know bytes on disk (store.py), the meaning of names (catalog.py), memory (residency.py).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tsugiki.errors import Conflict, InvalidArtifact, InvalidRequest, ModelNotFound, Unsupported
from tsugiki.variants.catalog import FILE, Catalog, Holdings, build_catalog
from tsugiki.variants.store import Alias, CrashPoint, Store, StoredVersion
from tsugiki.variants.verification import (
    CheckedFile,
    Verify,
    check,
    failed,
    passed,
    verify_against,
    without_path,
)
from tsugiki.variants.version import NAME, BaseIdentity, Version, check_name

logger = logging.getLogger(__name__)

HISTORY = 100  # activations remembered per name


class Registry:
    """The variants of one directory, for one base."""

    def __init__(
        self,
        root: Path,
        identity: BaseIdentity,
        *,
        verify: Verify | None = None,
        reserved: Iterable[str] = (),
        crash_point: CrashPoint = lambda step: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Scan `root` and verify every file in it. `reserved` names (the base's id) are refused.

        A file that must not be served does not stop the scan: it becomes a failed version.
        `verify`, `crash_point` and `clock` are seams for tests.
        """
        self._store = Store(root, crash_point)
        self._verify = verify or verify_against(identity)
        self._reserved = frozenset(reserved)
        self._crash_point = crash_point
        self._clock = clock
        self._lock = threading.Lock()
        self._aliases: dict[str, Alias] = {}
        self._damaged: dict[str, str] = {}
        self._placed: dict[str, CheckedFile] = {}
        self._blobs: dict[str, CheckedFile] = {}
        self._catalog = Catalog()
        self._scan()

    def resolve(self, model: str) -> Version:
        """The version that `name` or `name@sha256:<at least 12 hex>` means now.

        Raises:
            ModelNotFound: no such name or version, or a name without an active version.
            InvalidRequest: a digest prefix that several versions of the name share.
            InvalidArtifact: the version is known but must not be served.
        """
        return self._catalog.resolve(model)

    def versions(self) -> list[Version]:
        """Every version of every name, by name, the active one first."""
        return [v for versions in self._catalog.by_name.values() for v in versions]

    def active(self, name: str) -> Version | None:
        """The active version of a name, fit or failed; None when it has none."""
        return next((v for v in self._catalog.by_name.get(name, ()) if v.active), None)

    def path(self, digest: str) -> Path:
        """The file of a digest, as long as `purge` has not removed it.

        Raises:
            ModelNotFound: no servable file of this digest.
        """
        if digest not in self._catalog.paths:
            raise ModelNotFound(f"no file of digest {digest} is here any more")
        return self._catalog.paths[digest]

    def uploads(self) -> Path:
        """The directory for uploads in progress; files in it can be given to `put`."""
        return self._store.uploads()

    def put(self, name: str, path: Path, activate: bool = True) -> tuple[Version, bool]:
        """Verify a file of the uploads directory and make it a version of `name`.

        The file is moved or removed. Idempotent: the same content again only activates it.
        Returns the version and whether it is new to this name. Durable when it returns.

        Raises:
            InvalidRequest: a bad or reserved name, or a path that is no regular file.
            InvalidArtifact (WrongBase, CorruptArtifact): a file that must not be served.
            StorageFull: the disk is full. Unsupported: the directory cannot be written.
        """
        if path.is_symlink() or not path.is_file():
            raise InvalidRequest(f"the upload for variant {name!r} is not a regular file")
        try:
            self._check_new_name(name)
            checked = self._checked_upload(name, path)
            with self._lock:
                is_new = self._put(name, checked, activate)
                return self._catalog.resolve(f"{name}@{checked.digest}"), is_new
        finally:
            path.unlink(missing_ok=True)

    def activate(self, name: str, digest: str) -> Version:
        """Make a known version (a digest or 12 hex of one) the one that the bare name means.

        Raises:
            ModelNotFound, InvalidRequest, InvalidArtifact: as `resolve`.
        """
        with self._lock:
            version = self._catalog.resolve(f"{name}@{digest}")
            placed = self._placed.get(name)
            entry = FILE if placed and placed.path == version.path else version.digest
            self._save(_activated(self._holdings().alias(name), entry))
            return self._catalog.resolve(name)

    def rollback(self, name: str) -> Version:
        """Make the version active that was so before the current one.

        Raises:
            ModelNotFound: no such name.
            Conflict: there was none before, or it can no longer be served.
        """
        with self._lock:
            self._catalog.known(name)
            holdings = self._holdings()
            alias = holdings.alias(name)
            earlier = alias.activations[:-1]
            reason = holdings.file(name, earlier[-1]).error if earlier else "there was none"
            if reason:
                raise Conflict(f"variant {name!r} cannot return to an earlier version: {reason}")
            self._save(replace(alias, activations=earlier))
            return self._catalog.resolve(name)

    def delete(self, name: str) -> tuple[Version, ...]:
        """Forget a name and all its versions; returns them as they were.

        New requests no longer find it when this returns, also after a restart. Their files stay
        readable through `path` until `purge`, for requests that were accepted before.

        Raises:
            ModelNotFound: no such name.
        """
        with self._lock:
            known = self._catalog.known(name)
            stored = tuple(StoredVersion(v.digest, v.created) for v in known if v.digest)
            self._store.save_alias(Alias(name, stored, deleted=True))  # decided from here on
            self._aliases.pop(name, None)
            self._damaged.pop(name, None)
            placed = self._placed.pop(name, None)
            self._publish()
            self._finish_delete(name, placed)
            self._publish()
            return known

    def purge(self, digest: str) -> int:
        """Remove the file of a deleted digest that nothing uses any more; returns bytes freed.

        Does nothing while a name has this digest. What was not purged goes at the next start.
        """
        with self._lock:
            if digest not in self._blobs or digest in self._named_digests():
                return 0
            blob = self._blobs.pop(digest)
            self._publish()
            self._store.remove(blob.path)
            return blob.bytes

    def _scan(self) -> None:
        self._placed = {p.stem: self._check_placed(p) for p in self._store.placed_files()}
        deletions: dict[str, CheckedFile | None] = {}
        for name, record in self._store.aliases():
            if isinstance(record, str):
                logger.error("variant %r: %s", name, record)
                self._damaged[name] = record
            elif record.deleted:
                deletions[name] = self._take_deleted_file(record)
            else:
                self._aliases[name] = record
        self._blobs = {digest: self._check_blob(digest) for digest in self._store.blobs()}
        try:
            self._tidy(deletions)
        except Unsupported as error:
            logger.warning("leftovers stay, the directory is served as it is: %s", error)
        self._publish()

    def _tidy(self, deletions: Mapping[str, CheckedFile | None]) -> None:
        """Finish or undo what a crash interrupted."""
        self._store.clean()
        for name, placed in deletions.items():
            self._finish_delete(name, placed)
        if self._damaged:
            return  # a damaged record may be the only one that names a blob
        for digest in set(self._blobs) - self._named_digests():
            self._store.remove(self._blobs.pop(digest).path)

    def _take_deleted_file(self, record: Alias) -> CheckedFile | None:
        placed = self._placed.get(record.name)
        if placed is None or placed.digest not in {v.digest for v in record.versions}:
            return None  # the operator has put another file there since: that one counts
        return self._placed.pop(record.name)

    def _finish_delete(self, name: str, placed: CheckedFile | None) -> None:
        if placed is not None and placed.header is not None and not placed.path.is_symlink():
            kept = self._store.keep_as_blob(placed.path, placed.digest)
            self._blobs[placed.digest] = replace(placed, path=kept)
        elif placed is not None:
            self._store.remove(placed.path)
        self._crash_point("file taken away")
        self._store.remove_alias(name)
        self._crash_point("record removed")

    def _put(self, name: str, checked: CheckedFile, activate: bool) -> bool:
        digest = checked.digest
        alias = self._holdings().alias(name)
        placed = self._placed.get(name)
        is_file = placed is not None and placed.digest == digest
        is_new = not is_file and digest not in {v.digest for v in alias.versions}
        if not is_file:
            stored = self._store.add_blob(checked.path, digest)
            self._blobs[digest] = replace(checked, path=stored)
        if is_new:
            version = StoredVersion(digest, int(self._clock()))
            alias = replace(alias, versions=(*alias.versions, version))
        self._save(_activated(alias, FILE if is_file else digest) if activate else alias)
        return is_new

    def _save(self, alias: Alias) -> None:
        if alias != self._holdings().alias(alias.name) or alias.name in self._damaged:
            self._store.save_alias(alias)
            self._aliases[alias.name] = alias
            self._damaged.pop(alias.name, None)
        self._publish()

    def _publish(self) -> None:
        self._catalog = build_catalog(self._holdings())

    def _holdings(self) -> Holdings:
        return Holdings(self._aliases, self._damaged, self._placed, self._blobs)

    def _named_digests(self) -> set[str]:
        return {v.digest for alias in self._aliases.values() for v in alias.versions}

    def _check_new_name(self, name: str) -> None:
        if check_name(name) in self._reserved:
            raise InvalidRequest(f"{name!r} is the base's own name; choose another", param="name")

    def _checked_upload(self, name: str, path: Path) -> CheckedFile:
        try:
            header = self._verify(path)
        except InvalidArtifact as error:
            reason = without_path(error, path)
            logger.warning("upload for variant %r refused: %s", name, reason)
            raise type(error)(f"the file for variant {name!r} is refused: {reason}") from error
        return passed(path, header, int(self._clock()))

    def _check_placed(self, path: Path) -> CheckedFile:
        if not NAME.fullmatch(path.stem) or path.stem in self._reserved:
            checked = failed(path, f"{path.stem!r} cannot be a variant's name; rename the file")
        elif not path.is_file():
            checked = failed(path, "not a regular file")
        elif not self._store.inside(path):
            checked = failed(path, "a link that leaves the variants directory; copy the file")
        else:
            checked = check(path, self._verify)
        if checked.error:
            logger.error("variant file %s is not served: %s", path.name, checked.error)
        return checked

    def _check_blob(self, digest: str) -> CheckedFile:
        path = self._store.blob_path(digest)
        checked = check(path, self._verify)
        if checked.header is not None and checked.digest != digest:
            checked = failed(path, f"it holds {checked.digest}; upload {digest} again")
        if checked.error:
            logger.error("variant file %s is not served: %s", path.name, checked.error)
        return checked


def _activated(alias: Alias, entry: str) -> Alias:
    if alias.activations[-1:] == (entry,):
        return alias
    return replace(alias, activations=(*alias.activations, entry)[-HISTORY:])
