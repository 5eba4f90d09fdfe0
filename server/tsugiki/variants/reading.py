"""Looking at the variants of a directory: no lock, never a wait.

Owns: the questions that requests and listings ask of a registry. Every answer comes from one
immutable catalog, so that it holds together whatever changes meanwhile. Does not change anything.
"""

from pathlib import Path

from tsugiki.errors import ModelNotFound
from tsugiki.variants.alias import HistoryEntry
from tsugiki.variants.records import Records
from tsugiki.variants.trial import Trials
from tsugiki.variants.version import Version


class Reading:
    """The half of a registry that only looks; safe from any thread."""

    def __init__(self, records: Records, trials: Trials) -> None:
        self._records = records
        self._trials = trials

    def resolve(self, model: str, user: str | None = None) -> Version:
        """The version that `name` or `name@sha256:<at least 12 hex>` means now, for this user.

        While a canary runs, its share of the users gets that version under the bare name, always
        the same users. Without a user it is the active one, as is a canary that cannot be served.

        Raises:
            ModelNotFound: no such name or version, or a name without an active version.
            InvalidRequest: a digest prefix that several versions of the name share.
            InvalidArtifact: the version is known but must not be served.
        """
        return self._records.catalog.resolve(model, user)

    def versions(self) -> list[Version]:
        """Every version of every name, by name, the active one first."""
        return [v for versions in self._records.catalog.by_name.values() for v in versions]

    def active(self, name: str) -> Version | None:
        """The active version of a name, fit or failed; None when it has none."""
        known = self._records.catalog.by_name.get(name, ())
        return next((v for v in known if v.active), None)

    def history(self, name: str) -> tuple[HistoryEntry, ...]:
        """What happened to a name, oldest first, up to alias.HISTORY entries; empty for a name that
        has no record: an operator's file that is not served.

        Raises:
            ModelNotFound: no such name.
        """
        self._records.catalog.known(name)
        return self._records.alias(name).history

    def path(self, digest: str) -> Path:
        """The file of a digest, as long as `purge` has not removed it.

        Raises:
            ModelNotFound: no servable file of this digest.
        """
        found = self._records.catalog.paths.get(digest) or self._trials.path(digest)
        if found is None:
            raise ModelNotFound(f"no file of digest {digest} is here any more")
        return found
