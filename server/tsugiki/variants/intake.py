"""Files on their way into the registry: an upload, an operator's file, a file that is kept already.

Owns: the full check of each, outside every lock, and that what was checked is what is kept: an
operator's file is copied first and the copy is checked, since the operator may write over it at any
moment. Does not know names' records (registry.py).
"""

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tsugiki.errors import InvalidArtifact, InvalidRequest, StorageFull, Unsupported, UserError
from tsugiki.variants.signature import Signers, check_form
from tsugiki.variants.store import Store
from tsugiki.variants.verification import CheckedFile, Verify, failed, passed, without_path
from tsugiki.variants.version import NAME, check_name
from tsugiki.variants.watch import signature_name

SIGNATURE_FILE_BYTES = 1024  # more is no signature

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A checked file and the signature that came with it."""

    file: CheckedFile
    signature: str | None = None


class Intake:
    """Checks files for one base and one set of trusted keys. Safe to call from any thread."""

    def __init__(
        self,
        store: Store,
        verify: Verify,
        signers: Signers,
        reserved: Iterable[str] = (),
    ) -> None:
        self._store = store
        self._verify = verify
        self._signers = signers
        self._reserved = frozenset(reserved)

    def upload(self, name: str, path: Path, signature: str | None) -> Arrival:
        """A finished upload; its content is durable when this returns.

        Raises:
            InvalidRequest: a bad or reserved name, a malformed signature.
            InvalidArtifact (WrongBase, CorruptArtifact): a file that must not be served.
            StorageFull, Unsupported: see Store.
        """
        if check_name(name) in self._reserved:
            raise InvalidRequest(f"{name!r} is the base's own name; choose another", param="name")
        if signature is not None:
            signature = check_form(signature)
        try:
            header = self._verify(path)
            self._require_signature(header.digest, signature)
        except InvalidArtifact as error:
            reason = without_path(error, path)
            raise type(error)(f"the file for variant {name!r} is refused: {reason}") from error
        self._store.sync(path)
        return Arrival(passed(path, header, int(time.time())), signature)

    def placed(self, name: str) -> Arrival:
        """The operator's file of a name, as a copy among the uploads, or where it lies when
        nothing can be written; a failed one when it must not be served."""
        path = self._store.placed_path(name)
        try:
            self._check_place(name, path)
            signature, modified = self._sidecar(path), int(path.stat().st_mtime)
            return self._checked_copy(self._copied(path), signature, modified)
        except (UserError, OSError) as error:
            reason = without_path(error, path)
            logger.error("variant file %s is not served: %s", path.name, reason)
            return Arrival(failed(path, reason))

    def refused(self, name: str, arrival: Arrival, reason: str) -> Arrival:
        """The operator's file of a name, found whole but not to be served after all."""
        self.discard(arrival)
        path = self._store.placed_path(name)
        logger.error("variant file %s is not served: %s", path.name, reason)
        return Arrival(failed(path, reason))

    def discard(self, arrival: Arrival) -> None:
        """Remove the copy that `placed` made, unless it was moved to its place."""
        self._discard(arrival.file.path)

    def kept(self, digest: str) -> CheckedFile:
        """A file that was taken in before: it may have rotted, and the base may be another."""
        path = self._store.blob_path(digest)
        try:
            header = self._verify(path)
            if header.digest != digest:
                raise InvalidArtifact(f"it holds {header.digest}; upload {digest} again")
            return passed(path, header, int(path.stat().st_mtime))
        except (UserError, OSError) as error:
            reason = without_path(error, path)
            logger.error("variant file %s is not served: %s", path.name, reason)
            return failed(path, reason)

    def _check_place(self, name: str, path: Path) -> None:
        if not NAME.fullmatch(name) or name in self._reserved:
            raise InvalidArtifact(f"{name!r} cannot be a variant's name; rename the file")
        if not path.is_file():
            raise InvalidArtifact("not a regular file")
        if not self._store.inside(path):
            raise InvalidArtifact("a link that leaves the variants directory; copy the file")

    def _checked_copy(self, copy: Path, signature: str | None, modified: int) -> Arrival:
        with ExitStack() as on_failure:
            on_failure.callback(self._discard, copy)
            try:
                header = self._verify(copy)
                self._require_signature(header.digest, signature)
            except InvalidArtifact as error:
                raise type(error)(without_path(error, copy)) from error
            on_failure.pop_all()
        return Arrival(passed(copy, header, modified), signature)

    def _copied(self, path: Path) -> Path:
        try:
            return self._store.copy_in(path)
        except (StorageFull, Unsupported) as error:
            logger.warning("%s is served where it lies: %s", path.name, error)
            return path

    def _discard(self, path: Path) -> None:
        if path.parent == self._store.uploads_path:
            path.unlink(missing_ok=True)

    def _sidecar(self, path: Path) -> str | None:
        """The signature beside an operator's file."""
        sidecar = path.with_name(signature_name(path.name))
        if not sidecar.is_file():
            return None
        with sidecar.open(encoding="ascii", errors="replace") as file:
            return check_form(file.read(SIGNATURE_FILE_BYTES))

    def _require_signature(self, digest: str, signature: str | None) -> None:
        if reason := self._signers.refusal(digest, signature):
            raise InvalidArtifact(reason)
