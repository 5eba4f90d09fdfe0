"""Which variants there are, and what comes and goes: uploads, the operator's files, deletion.

Owns the public operations on one directory: changes happen one at a time (worker threads call in),
also of who answers (choosing.py), reads (reading.py) never wait. Files are hashed and checked
outside the lock. Every change is durable before it is visible, and visible when the call returns.

Versions stay until somebody deletes them: by `delete_version`, by `delete` of the name, or, for
those that came as an operator's file, by removing that file.

Does not know bytes on disk (store.py), the meaning of names (catalog.py), the operator's files
(scan.py), memory (residency.py).
"""

import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tsugiki.errors import Conflict, InvalidRequest, StorageFull, TsugikiError, Unsupported
from tsugiki.trusted_keys import TrustedKey
from tsugiki.variants.alias import StoredVersion
from tsugiki.variants.choosing import Choosing
from tsugiki.variants.directory_lock import DirectoryLock
from tsugiki.variants.intake import Arrival, Intake
from tsugiki.variants.records import Records
from tsugiki.variants.scan import Scan
from tsugiki.variants.signature import Signers
from tsugiki.variants.store import CrashPoint, Store
from tsugiki.variants.trial import Trial, TrialOf, Trials
from tsugiki.variants.verification import Verify, verify_against
from tsugiki.variants.version import BaseIdentity, Version
from tsugiki.variants.watch import Change

logger = logging.getLogger(__name__)


class Registry(Choosing):
    """The variants of one directory, for one base."""

    def __init__(
        self,
        root: Path,
        identity: BaseIdentity,
        *,
        verify: Verify | None = None,
        reserved: Iterable[str] = (),
        trusted_keys: Iterable[TrustedKey] = (),
        directory: DirectoryLock | None = None,
        crash_point: CrashPoint = lambda step: None,
    ) -> None:
        """Scan `root` and verify every file in it. `reserved` names (the base's id) are refused.

        A file that must not be served does not stop the scan: it becomes a failed version. With
        `trusted_keys`, so does every version that none of them signed. A server brings the lock of
        the directory (store.claim), held until `close`: two writers would undo each other's
        changes. `verify` and `crash_point` are seams for tests.

        Raises:
            ConfigError: `root` is no directory and cannot be made.
        """
        self.root = root
        signers = Signers(trusted_keys)
        self._store = Store(root, crash_point)
        self._store.open()
        self._directory = directory
        self._crash_point = crash_point
        super().__init__(Records(self._store, signers), Trials())
        check = verify or verify_against(identity)
        self._intake = Intake(self._store, check, signers, reserved)
        self._scan = Scan(self._records, self._intake, self._trials, crash_point)
        self._watching = threading.Lock()
        self._scan.start()

    def close(self) -> None:
        """Let another server have the directory."""
        if self._directory is not None:
            self._directory.release()

    def uploads(self) -> Path:
        """The directory for uploads in progress; files in it can be given to `put`.

        Those named `*.partial` and `*.partial.json` survive a restart for a day.
        """
        return self._store.uploads()

    def put(
        self,
        name: str,
        path: Path,
        activate: bool = True,
        signature: str | None = None,
        trial: Trial | None = None,
    ) -> tuple[Version, bool]:
        """Verify a file of the uploads directory and make it a version of `name`.

        The file is moved or removed. Idempotent: the same content again only activates it, and
        brings its signature (base64, see signature.py). Returns the version and whether it is new
        to this name. Durable when it returns. `trial` is called with the verified file's header
        before anything is kept, while `path` finds the upload: what it raises refuses the upload.

        Raises:
            InvalidRequest: a bad or reserved name, a path that is no regular file, a signature that
                is none.
            InvalidArtifact (WrongBase, CorruptArtifact): a file that must not be served, or that no
                trusted key signed.
            StorageFull: the disk is full. Unsupported: the directory cannot be written.
        """
        if path.is_symlink() or not path.is_file():
            raise InvalidRequest(f"the upload for variant {name!r} is not a regular file")
        try:
            arrival = self._intake.upload(name, path, signature)
            self._trials.run(arrival.file, trial)
            with self._lock:
                is_new = self._put(name, arrival, activate)
                return self.resolve(f"{name}@{arrival.file.digest}"), is_new
        finally:
            path.unlink(missing_ok=True)

    def delete_version(self, name: str, digest: str) -> Version:
        """Forget one version, and the operator's file if it holds it; returns it as it was.

        Ends its canary. Its file stays readable through `path` until `purge`.

        Raises:
            ModelNotFound, InvalidRequest: as `resolve`.
            Conflict: it is the active version.
        """
        with self._lock:
            version = self._find(name, digest)
            if version.active:
                raise Conflict(
                    f"{name}@{version.digest} is the active version; activate another one first, "
                    "or delete the whole name"
                )
            alias = self._records.alias(name)
            after = alias.without_version(version.digest, self._records.now())
            if not after.versions:
                self._delete(name)
                return version
            self._change(after, version)
            if alias.placed and alias.placed.digest == version.digest:
                self._scan.take_away(alias)
                self._records.save(replace(after, placed=None))
            return version

    def delete(self, name: str) -> tuple[Version, ...]:
        """Forget a name, all its versions and the operator's file; returns them as they were.

        New requests no longer find it when this returns, also after a restart. Their files stay
        readable through `path` until `purge`, for requests that were accepted before.

        Raises:
            ModelNotFound: no such name.
        """
        with self._lock:
            known = self._records.catalog.known(name)
            self._delete(name)
            return known

    def purge(self, digest: str) -> int:
        """Remove the file of a deleted digest that nothing uses any more; returns bytes freed.

        Does nothing while a name has this digest. What was not purged goes at the next start.
        """
        with self._lock:
            if digest not in self._records.files or digest in self._records.named():
                return 0
            return self._records.drop(digest)

    @property
    def postponed(self) -> bool:
        """Whether the start left files to the first `rescan`, which can try them."""
        return self._scan.postponed

    def rescan(self, trial_of: TrialOf | None = None) -> list[Change]:
        """Take in what the operator changed in the directory since the last call; returns that.

        To be called every second or so: a file counts once it was found the same by two calls, and
        a broken one changes nothing but the listing, nor does one that fails the trial of its name.
        (Files are tried as scan.py says.) As long as nothing changed this reads no file.
        Versions that are gone ("removed") can be given to `purge` when no request uses them.

        Raises:
            OSError: the directory cannot be listed. StorageFull: no room for the record.
        """
        changes: list[Change] = []
        with self._watching:
            with self._lock:
                changed = self._scan.changed()
            for name, stamp in changed.items():
                try:
                    arrival = self._scan.arrival(name, stamp, trial_of)
                except TsugikiError as error:
                    logger.warning("variant file %s waits for another look: %s", name, error)
                    continue
                with self._lock:
                    changes += self._scan.apply(name, stamp, arrival)
                    self._records.publish()
        return changes

    def _put(self, name: str, arrival: Arrival, activate: bool) -> bool:
        records, digest = self._records, arrival.file.digest
        alias = records.alias(name)
        is_new = alias.version(digest) is None
        records.keep(arrival.file)
        version = StoredVersion(digest, records.now(), "upload", arrival.signature)
        alias = alias.with_version(version, records.now())
        try:
            records.save(alias.activated(digest, records.now()) if activate else alias)
        except (StorageFull, Unsupported):
            if digest not in records.named():
                records.drop(digest)
            raise
        records.publish()
        return is_new

    def _delete(self, name: str) -> None:
        alias = replace(self._records.alias(name), activations=(), canary=None, deleted=True)
        self._store.save_alias(alias)  # decided from here on
        self._records.aliases.pop(name, None)
        self._records.damaged.pop(name, None)
        self._records.unfit.pop(name, None)
        self._records.publish()
        self._scan.take_away(alias)
        self._store.remove_alias(name)
        self._crash_point("record removed")
